"""Kyutai STT, which transcribes a recording while reading it, with one text token per Mimi frame."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy(f"{__name__}.reader:open_text_codec"),
    open_live_input=lazy(f"{__name__}.prompt:open_live_input"),
)
