"""I/O layer of the Triton models: tensors in, tensors out. The only package that uses `pb_utils`."""
