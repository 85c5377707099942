"""Our own Triton kernels, each with its CPU twin and the function that selects one of the two."""
