"""Published releases: their names, their detection, and how they are installed."""
