"""Conversion of requests and responses of the Triton models; no other package imports `pb_utils`."""
