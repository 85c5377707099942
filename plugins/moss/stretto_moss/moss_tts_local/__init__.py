"""MOSS-TTS-Local v1.5: Qwen3 with a slot stream and 12 codebooks, and a depth transformer with a GPT-2 layer."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__, recognise="stretto_moss:LOCAL")
