"""Moshi: full-duplex speech; each row has a text token, and a frame of input and of output."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moshi",
    build=lazy("stretto_kyutai.moshi.family:build", "moshi"),
    open_template=lazy("stretto_kyutai.moshi.prompt:open_template"),
    text_codec=lazy("stretto_kyutai.moshi.reader:open_text_codec"),
    convert="stretto_kyutai.moshi.convert",
    releases="stretto_kyutai.moshi:releases.json",
    recognise="stretto_kyutai.moshi.recognise:recognise",
    notes="stretto_kyutai.moshi:releases.md",
    open_live_input=lazy("stretto_kyutai.moshi.prompt:open_live_input"),
)
