"""Higgs Audio v3 (Higgs TTS 3): Qwen3 4B over rows of text or of eight delayed codes."""

from stretto.family.plugin import family_plugin
from stretto.family.recognition import OneRelease

RELEASE = OneRelease(
    "higgs_audio_v3",
    "Higgs Audio v3",
    "higgs_multimodal_qwen3",
    expected={"audio_encoder_config.encoder_type": ("discrete", None)},
    needed=("tokenizer.json",),
)
PLUGIN = family_plugin(__name__, recognise=f"{__name__}:RELEASE")
