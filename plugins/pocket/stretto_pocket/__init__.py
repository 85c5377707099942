"""Pocket TTS and Phonon."""
