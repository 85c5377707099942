"""Marks in generated speech that a detector recognises: the plug-in point for markers, and the marker `perth`."""
