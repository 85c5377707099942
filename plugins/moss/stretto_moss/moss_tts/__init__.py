"""MOSS-TTS: Qwen3 with a text stream and 32 codebooks in the delay pattern."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__, recognise="stretto_moss:DELAY")
