"""Sampling: from logits to one token id per stream."""
