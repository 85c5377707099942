"""Proxy in front of Triton: clients connect to it, and it checks and limits every call to Triton."""
