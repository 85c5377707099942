"""Kernels: our own Triton kernels, CPU versions of vLLM's, and a Triton backend for hosts without a GPU."""
