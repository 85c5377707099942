"""Fish Audio S2 Pro: Qwen3 over text and frames of ten codes, and a depth transformer for nine of them."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__)
