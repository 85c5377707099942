"""Ray Serve application of gateways and speech servers (docs/scale.md). It uses the server only through its command."""
