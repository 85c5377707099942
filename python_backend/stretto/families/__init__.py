"""Model families, described as data."""
