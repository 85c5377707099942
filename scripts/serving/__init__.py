"""The parts of the launcher `scripts.serve`: find a Triton server, start it, watch it, stop it, clean up after it."""
