"""Timeout for events that must happen. Only failures take this time, whatever the machine's load."""

PATIENCE_S = 600.0
