"""Checks and measurements on a host with a GPU: jobs, each in its own process (`jobs.py` lists them)."""
