"""Reading of releases and writing of checkpoints; a missing or unexpected tensor is an error."""
