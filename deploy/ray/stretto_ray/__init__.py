"""Gateways and speech servers as an application of Ray Serve (docs/scale.md). Knows the server by its command alone."""
