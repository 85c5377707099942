"""Kernels of codecs on a GPU, called through torch's operators `stretto::…`, which are also defined without Triton."""
