"""Launcher, which finds a Triton installation, starts, watches and stops the server, and cleans up after it."""
