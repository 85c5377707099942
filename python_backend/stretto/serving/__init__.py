"""The launcher: find a Triton server, start it, watch it, stop it, clean up after it."""
