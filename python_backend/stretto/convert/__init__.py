"""Conversion of published releases to checkpoints that vLLM loads, one module per part of a release or checkpoint."""
