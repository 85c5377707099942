"""Kyutai TTS, which requests the words of a text one by one. Its speech follows after a fixed delay."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy(f"{__name__}.words:open_text_codec"),
)
