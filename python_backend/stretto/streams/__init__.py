"""Order of codes in the rows of a sequence, in numpy and plain Python, independent of model and server."""
