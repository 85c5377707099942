"""The kernels of a step: Triton's, their twins for a CPU, and a Triton backend for hosts without a GPU."""
