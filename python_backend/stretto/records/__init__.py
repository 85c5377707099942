"""Records that cross a process or model boundary."""
