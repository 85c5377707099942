"""Tensors and configs of releases: strict loading, plans, shards, backbones."""
