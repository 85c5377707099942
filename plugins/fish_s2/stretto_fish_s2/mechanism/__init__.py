"""This family's mechanism: the sampling of codes."""
