"""Fish Audio S2 Pro."""
