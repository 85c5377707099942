"""Positions of the rows, and how Turbo's codes are sampled: this family's mechanisms."""
