"""Tensors and configs in releases: strict loading, conversion plans, shards, backbones."""
