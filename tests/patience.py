"""Timeout for events that must happen. Only a failure takes so much time, whatever the machine's load."""

PATIENCE_S = 600.0
