"""Kernels of a step: Triton kernels, their CPU twins, and a Triton backend for hosts without a GPU."""
