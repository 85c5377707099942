"""Sampling: from logits to one token per stream."""
