"""Checks and measurements on a host with a GPU. Each job runs in its own process (`jobs.py` lists them)."""
