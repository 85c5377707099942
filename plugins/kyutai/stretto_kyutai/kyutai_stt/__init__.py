"""Kyutai STT: transcribes a recording while reading it, with one text token per Mimi frame."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="kyutai_stt",
    build=lazy("stretto_kyutai.kyutai_stt.family:build", "kyutai_stt"),
    open_template=lazy("stretto_kyutai.kyutai_stt.prompt:open_template"),
    text_codec=lazy("stretto_kyutai.kyutai_stt.reader:open_text_codec"),
    convert="stretto_kyutai.kyutai_stt.convert",
    releases="stretto_kyutai.kyutai_stt:releases.json",
    recognise="stretto_kyutai.kyutai_stt.recognise:recognise",
    notes="stretto_kyutai.kyutai_stt:releases.md",
    open_live_input=lazy("stretto_kyutai.kyutai_stt.prompt:open_live_input"),
)
