"""Fixtures for family tests."""

from tests.refused_conversion import copied, refuses

__all__ = ["copied", "refuses"]
