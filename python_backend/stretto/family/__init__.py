"""Interface of model families: the data of a family, and the ports through which the server uses it."""
