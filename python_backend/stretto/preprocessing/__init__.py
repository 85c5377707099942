"""Everything before the language model: a request to a prompt."""
