"""Worker process, which turns hidden states into the ids of the next rows."""
