"""I/O layer of the Triton models: converts requests and responses. The only package that imports `pb_utils`."""
