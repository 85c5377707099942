"""The engine's process: which rows the next step computes."""
