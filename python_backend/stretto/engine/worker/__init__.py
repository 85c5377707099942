"""Worker process: from hidden states to the ids of the next rows."""
