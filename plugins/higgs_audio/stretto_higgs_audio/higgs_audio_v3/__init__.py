"""Higgs Audio v3 (Higgs TTS 3): Qwen3 4B over rows of text or of eight delayed codes."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__)
