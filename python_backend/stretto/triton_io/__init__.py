"""I/O layer of the Triton models, which converts requests and responses.

No other package imports `pb_utils`.
"""
