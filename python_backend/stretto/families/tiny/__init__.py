"""Bundled model `tiny`."""
