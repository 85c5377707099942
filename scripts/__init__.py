"""What a person or the night types in a clone: set up, test, speak, lock, release; and what writes fixtures."""
