"""Any installed codec with narrow layers or with its published sizes, and arbitrary weights.

For measurements that depend on shapes only: which windows are decoded, and how much memory that takes.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lab.releases.random_codecs import STATEFUL, codec_of, make_stateful, write_checkpoint
from lab.releases.random_glm4_voice import CONFIG, NARROW, WIDE
from lab.releases.random_qwen3_codec import code2wav_record
from plugins.chatterbox.lab import random_s3gen
from plugins.cosyvoice3.lab import random_cosyvoice3
from plugins.fish_s2.lab import random_fish_s2_codec
from plugins.moss.lab.random_moss import codec_config
from plugins.pocket.lab import random_pocket
from plugins.voxcpm2.lab import random_voxcpm2
from stretto.codecs.base import Codec, load_codec
from stretto.codecs.glm4_voice import Glm4VoiceCodec, read_config
from stretto_chatterbox.s3gen import S3GenCodec
from stretto_cosyvoice3.codec import CosyVoice3Codec, prepared
from stretto_fish_s2.codec import FishS2Codec, FishS2Config
from stretto_moss.codec import MossCodec, MossConfig
from stretto_pocket.codec import PocketCodec, PocketConfig
from stretto_qwen3_omni.code2wav import Code2Wav, read_shape
from stretto_vibevoice.codec import LatentScale, TokenizerConfig, VibeVoiceCodec
from stretto_voxcpm2.audiovae import AudioVae, AudioVaeConfig

CHECKPOINT = Path(__file__).parents[2] / "model_repository/language_model/1/checkpoint"  # the bundled model
VARIANTS = {"dac": "dac_24khz"}  # the one to build of several published models
VIBEVOICE: dict[str, Any] = {"hidden_size": 8, "num_filters": 2, "depths": [1] * 7}
CODE2WAV = {
    "codebook_size": 2048,
    "decoder_dim": 1536,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
VOICE_TOKENS = 150


def make_codec(name: str, device: str, is_narrow: bool) -> Codec:
    """Return the bundled codec, or a codec from `random_codecs.py` with random weights."""
    if name == "tiny":
        return load_codec(name, CHECKPOINT, device)
    if name in STATEFUL:
        return make_stateful(name, is_narrow, device=device)
    with tempfile.TemporaryDirectory() as folder:
        return load_codec(codec_of(name), write_checkpoint(name, Path(folder) / "codec", is_narrow).parent, device)


def every_codec(name: str, is_narrow: bool) -> Codec:
    """Return the installed codec called `name` on the CPU, narrow or with its published sizes."""
    if name == "audiovae":
        codec: Any = AudioVae(AudioVaeConfig.from_record(random_voxcpm2.VAE if is_narrow else {}, num_latents=4))
    elif name == "cosyvoice3":
        codec = prepared(CosyVoice3Codec(random_cosyvoice3.NARROW if is_narrow else random_cosyvoice3.WIDE))
    elif name == "fish_s2":
        with torch.device("cpu" if is_narrow else "meta"):
            codec = FishS2Codec(
                FishS2Config.from_record(random_fish_s2_codec.SMALL if is_narrow else random_fish_s2_codec.PUBLISHED)
            )
    elif name == "glm4_voice":
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.yaml").write_text(CONFIG.format(**(NARROW if is_narrow else WIDE)))
            codec = Glm4VoiceCodec(read_config(Path(folder)))
    elif name == "moss":
        with torch.device("meta" if not is_narrow else "cpu"):
            codec = MossCodec(MossConfig.from_record(codec_config("small" if is_narrow else "published")))
    elif name == "pocket":
        codec = PocketCodec(
            PocketConfig.from_record(random_pocket.config("english" if is_narrow else "published")["mimi"])
        )
    elif name == "qwen3_omni":
        codec = Code2Wav(read_shape(code2wav_record() | ({} if is_narrow else CODE2WAV)))
    elif name == "s3gen":
        shape = random_s3gen.NARROW if is_narrow else random_s3gen.WIDE
        codec = S3GenCodec(replace(shape, voices=(VOICE_TOKENS,)))
    elif name == "vibevoice":
        codec = VibeVoiceCodec(TokenizerConfig.from_record(VIBEVOICE if is_narrow else {}), LatentScale(1.0, 0.0))
    else:
        return make_codec(VARIANTS.get(name, name), "cpu", is_narrow)
    assert isinstance(codec, nn.Module)
    made: Any = codec.eval().requires_grad_(False)
    return made
