"""VibeVoice-ASR: Qwen2.5 that reads features of a recording, and writes a transcript with speakers and times."""

from stretto.family.plugin import AudioEncoder, family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy(f"{__name__}.reader:open_text_codec"),
    audio_encoders={
        "vibevoice_asr": AudioEncoder(lazy(f"{__name__}.family:FeatureFormat.from_record"), f"{__name__}.model")
    },
)
