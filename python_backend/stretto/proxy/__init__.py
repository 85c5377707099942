"""Proxy in front of Triton, which checks and limits each client call before forwarding it."""
