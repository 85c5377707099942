"""Layout of codes in a sequence of rows, in numpy and plain Python, independent of model and server."""
