"""Fixtures for family tests."""

from tests.refused_conversion import refuses

__all__ = ["refuses"]
