"""Repetition penalty on the ids of the last rows, in numpy or torch arrays and as a Triton function."""
