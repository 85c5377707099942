"""Worker process, which samples the ids of the next rows from hidden states."""
