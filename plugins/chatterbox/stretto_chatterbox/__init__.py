"""Chatterbox T3, a language model over text followed by codes. Turbo and Nano use GPT-2 without guidance."""

from stretto.family.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="chatterbox",
    build=lazy("stretto_chatterbox.family:build", "chatterbox"),
    open_template=lazy("stretto_chatterbox.prompt:open_template"),
    convert="stretto_chatterbox.convert",
    releases="stretto_chatterbox:releases.json",
    recognise="stretto_chatterbox.recognise:recognise",
    notes="stretto_chatterbox:releases.md",
    architectures={"StrettoChatterboxTurboForCausalLM": "stretto.engine.models.backbones:StrettoGpt2ForCausalLM"},
    audio_encoders={
        "chatterbox_voice": AudioEncoder(
            lazy("stretto.family.audio_format:VectorFormat.from_record"), "stretto_chatterbox.model"
        )
    },
)
