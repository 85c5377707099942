"""Our own Triton kernels, each with an equivalent in NumPy or torch and a function that selects one of the two."""
