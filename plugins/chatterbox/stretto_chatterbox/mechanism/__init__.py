"""This family's mechanisms: positions of the rows in CFG pairs, and the sampling of Turbo's codes."""
