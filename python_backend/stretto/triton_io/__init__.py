"""The rim: tensors in, tensors out. The only package that knows `pb_utils`."""
