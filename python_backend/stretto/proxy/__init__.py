"""Proxy in front of Triton. Clients connect to it; it checks and limits each call before it reaches Triton."""
