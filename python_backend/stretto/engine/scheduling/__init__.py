"""Scheduling: choosing the rows that the engine computes in the next step."""
