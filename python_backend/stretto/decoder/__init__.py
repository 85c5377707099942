"""Acoustic decoder, which converts the language model's codes to audio, chunk by chunk."""
