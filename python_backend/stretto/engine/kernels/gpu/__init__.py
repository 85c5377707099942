"""The step's own Triton kernels, each with its twin for the CPU and the one place that chooses between the two."""
