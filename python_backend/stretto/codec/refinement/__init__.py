"""Codebooks that are not drawn one row after another: filled in, of a whole utterance, before the codec decodes it."""
