"""Moshi: full-duplex speech. Each row has a text token, and a frame of input and of output."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy(f"{__name__}.reader:open_text_codec"),
    open_live_input=lazy(f"{__name__}.prompt:open_live_input"),
)
