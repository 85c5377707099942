"""MOSS-TTS, MOSS-TTS-Local and MOSS-TTS-Realtime."""

from dataclasses import replace

from stretto.family.recognition import CODEC_FROM_COMPANION, Needed, OneRelease

CODEC_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
DELAY = OneRelease(
    "moss_tts",
    "MOSS-TTS",
    "moss_tts_delay",
    refused={"moss_tts_nano": "MOSS-TTS-Nano is not supported, only MOSS-TTS v1.5, -Local v1.5 and -Realtime"},
    expected={"local_num_layers": (None,)},  # of MOSS-TTS-Local-Transformer 1.0, with the same model_type
    convert=CODEC_FROM_COMPANION,
    companions=(Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer", CODEC_FILES),),
)
REALTIME = replace(
    DELAY,
    family="moss_tts_realtime",
    title="MOSS-TTS-Realtime",
    model_type="moss_tts_realtime",
    refused={},
    expected={},
)
LOCAL = replace(
    REALTIME,
    family="moss_tts_local",
    title="MOSS-TTS-Local",
    model_type="moss_tts_local",
    companions=(Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer-v2", CODEC_FILES),),
)
