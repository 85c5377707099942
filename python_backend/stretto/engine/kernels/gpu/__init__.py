"""Triton kernels, each with a NumPy or torch equivalent and a function that selects one of them."""
