"""Launcher: finds a Triton server installation; starts, watches and stops the server; and cleans up after it."""
