"""Ray Serve application of gateways and speech servers (docs/scale.md); it uses the server only by its command."""
