"""Acoustic decoder: turns the language model's codes into audio, chunk by chunk."""
