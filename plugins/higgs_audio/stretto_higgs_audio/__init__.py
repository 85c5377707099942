"""Higgs Audio v2 and Higgs TTS 3."""
