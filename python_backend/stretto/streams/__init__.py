"""How codes lie in a sequence of rows, in numpy and plain Python. It knows no model and no server."""
