"""Scheduling: the choice of the rows that the engine computes in the next step."""
