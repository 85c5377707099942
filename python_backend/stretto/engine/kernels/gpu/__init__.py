"""Our own Triton kernels, each with an equivalent in numpy or torch and the function that selects one of the two."""
