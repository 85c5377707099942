"""Launcher: finds a Triton server, starts, watches and stops it, and cleans up after it."""
