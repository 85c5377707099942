"""Launcher: finds Triton; starts, watches and stops the server; and cleans up after it."""
