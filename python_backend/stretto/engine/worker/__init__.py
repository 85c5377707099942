"""The worker's process: from rows to the ids of the next ones."""
