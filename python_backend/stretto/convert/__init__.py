"""Conversion of published models to checkpoints that vLLM loads."""
