"""Soak test with faults: every answer must be correct or an explicit error."""
