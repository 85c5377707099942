"""Interface of model families: what a family states, and the ports through which the server uses it."""
