"""Repetition penalty on the codes of a whole reply, in numpy or torch arrays and in kernels."""
