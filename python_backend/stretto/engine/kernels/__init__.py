"""Triton kernels, CPU versions of vLLM's kernels, and a Triton backend for hosts without a GPU."""
