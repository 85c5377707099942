"""Tensors and configs of releases: strict loading, conversion plans, shards, backbones."""
