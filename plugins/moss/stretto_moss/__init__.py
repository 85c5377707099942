"""MOSS-TTS, MOSS-TTS-Local, MOSS-TTS-Nano and MOSS-TTS-Realtime."""

from dataclasses import replace

from stretto.family.recognition import CODEC_FROM_COMPANION, Needed, OneRelease

CODEC_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
DELAY = OneRelease(
    "moss_tts",
    "MOSS-TTS",
    "moss_tts_delay",
    expected={"local_num_layers": (None,)},  # set in MOSS-TTS-Local-Transformer 1.0, which has the same model_type
    convert=CODEC_FROM_COMPANION,
    companions=(Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer", CODEC_FILES),),
)
REALTIME = replace(
    DELAY,
    family="moss_tts_realtime",
    title="MOSS-TTS-Realtime",
    model_type="moss_tts_realtime",
    expected={},
)
LOCAL = replace(
    REALTIME,
    family="moss_tts_local",
    title="MOSS-TTS-Local",
    model_type="moss_tts_local",
    companions=(Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer-v2", CODEC_FILES),),
)
NANO = replace(
    REALTIME,
    family="moss_tts_nano",
    title="MOSS-TTS-Nano",
    model_type="moss_tts_nano",
    pickled="pytorch_model.bin",
    needed=("tokenizer.model",),
    optional=("tokenizer_config.json",),
    convert=("--model", "{repo}/pytorch_model.bin", *CODEC_FROM_COMPANION[2:]),
    companions=(Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer-Nano", CODEC_FILES),),
)
