"""Moshi: full-duplex speech; each row has a text token, and a frame of input and of output."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moshi",
    build=lazy("stretto.families.moshi.family:build", "moshi"),
    open_template=lazy("stretto.families.moshi.prompt:open_template"),
    text_codec=lazy("stretto.families.moshi.reader:open_text_codec"),
    convert="stretto.families.moshi.convert",
    releases="stretto.families.moshi:releases.json",
    recognise="stretto.families.moshi.recognise:recognise",
    notes="stretto.families.moshi:releases.md",
    open_live_input=lazy("stretto.families.moshi.prompt:open_live_input"),
)
