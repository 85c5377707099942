"""Chatterbox T3, a language model over text followed by codes. Turbo and Nano use GPT-2 without guidance."""

from stretto.family.plugin import AudioEncoder, family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoChatterboxTurboForCausalLM": "stretto.engine.models.backbones:StrettoGpt2ForCausalLM"},
    audio_encoders={
        "chatterbox_voice": AudioEncoder(
            lazy("stretto.family.audio_format:VectorFormat.from_record"), f"{__name__}.model"
        )
    },
)
