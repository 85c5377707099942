"""Scheduling, in the engine's process: which rows the next step computes."""
