"""MOSS-TTS-Realtime: Qwen3 with a text stream beside 16 codebooks, and a depth transformer for all of them."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__, recognise="stretto_moss:REALTIME")
