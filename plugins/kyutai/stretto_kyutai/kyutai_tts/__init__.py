"""Kyutai TTS: the model asks for the words of a text one by one, and its speech follows them by a fixed delay."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="kyutai_tts",
    build=lazy("stretto_kyutai.kyutai_tts.family:build", "kyutai_tts"),
    open_template=lazy("stretto_kyutai.kyutai_tts.prompt:open_template"),
    text_codec=lazy("stretto_kyutai.kyutai_tts.words:open_text_codec"),
    convert="stretto_kyutai.kyutai_tts.convert",
    releases="stretto_kyutai.kyutai_tts:releases.json",
    recognise="stretto_kyutai.kyutai_tts.recognise:recognise",
    notes="stretto_kyutai.kyutai_tts:releases.md",
)
