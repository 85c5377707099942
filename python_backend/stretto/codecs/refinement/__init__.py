"""Models that fill in codebooks of a whole utterance before the codec decodes it."""
