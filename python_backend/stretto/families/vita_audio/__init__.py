"""VITA-Audio: interleaved text and speech in one stream, with several ids per forward pass."""

from stretto.family.plugin import AudioEncoder, family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    audio_encoders={
        "sense_voice_small": AudioEncoder(lazy(f"{__name__}.family:StackedFormat.from_record"), f"{__name__}.model")
    },
)
