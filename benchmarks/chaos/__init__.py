"""Soak test with faults: every answer is correct or an explicit error, whatever happens to the server."""
