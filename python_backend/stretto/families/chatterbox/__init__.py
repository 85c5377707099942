"""Chatterbox's T3: rows of text followed by codes; Llama, guided by default, or in Turbo and Nano GPT-2, unguided."""

from stretto.families.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="chatterbox",
    build=lazy("stretto.families.chatterbox.family:build", "chatterbox"),
    open_template=lazy("stretto.families.chatterbox.prompt:open_template"),
    convert="stretto.families.chatterbox.convert",
    architectures={"StrettoChatterboxTurboForCausalLM": "stretto.engine.models.backbones:StrettoGpt2ForCausalLM"},
    audio_encoders={
        "chatterbox_voice": AudioEncoder(
            lazy("stretto.families.audio_format:VectorFormat.from_record"), "stretto.families.chatterbox.model"
        )
    },
)
