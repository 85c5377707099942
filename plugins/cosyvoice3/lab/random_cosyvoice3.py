"""CosyVoice 3 releases in the published layout, with random weights that give audible output.

cosyvoice3.yaml   llm.pt   flow.pt   hift.pt   campplus.onnx   speech_tokenizer_v3.onnx   CosyVoice-BlankEN/

A release is small, except that the decoder can have its published width. Weights are drawn by numpy in the order of
their names, so that an external reference can draw the same ones. The networks that encode recordings are far smaller
than the published ones: each is a single matrix product.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor

from lab.releases.random_glm4_voice import DIRECTION, MAGNITUDE, as_published, random_vocoder, random_weights
from lab.releases.random_qwen3_tts import write_tokenizer
from lab.releases.random_tensors import random_tensors
from stretto.codecs.cosyvoice.shapes import HEAD_WIDTH, vocoder_shape
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN
from stretto.convert.command import main
from stretto.weights.loading import shapes_read
from stretto_cosyvoice3.codec import CHUNK, CosyVoice3Codec, CosyVoice3Config, prepared
from stretto_cosyvoice3.convert import (
    BACKBONE,
    CONFIG,
    DROPPED,
    EMBEDDINGS,
    HEAD,
    VOICES,
    plan,
)
from stretto_cosyvoice3.dit import DitShape
from stretto_cosyvoice3.family import CosyVoice3Vocabulary
from stretto_cosyvoice3.tokens import ADDED
from stretto_cosyvoice3.voices import SPEAKER as SPEAKER_FILE
from stretto_cosyvoice3.voices import TOKENIZER

NUM_CODES = 6561
MELS = 80
SPEAKER = 192
SEEDS = (0, 1)  # seeds of the releases that the authors' code decoded
NARROW = CosyVoice3Config(
    codebook_size=NUM_CODES,
    mels=MELS,
    speaker=SPEAKER,
    inner=24,
    estimator=DitShape(width=64, layers=2, heads=2, head_width=HEAD_WIDTH, inner=128, chunk=FRAMES_PER_TOKEN * CHUNK),
    vocoder=vocoder_shape(channels=16, pitch_channels=8, is_causal=True),
)
WIDE = replace(
    NARROW,
    inner=1024,
    estimator=DitShape(
        width=1024, layers=22, heads=16, head_width=HEAD_WIDTH, inner=2048, chunk=FRAMES_PER_TOKEN * CHUNK
    ),
    vocoder=vocoder_shape(channels=512, pitch_channels=512, is_causal=True),
)


def tensors(config: CosyVoice3Config = NARROW, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the random tensors of `flow` and of `hift`, each a dict by published name."""
    codec = CosyVoice3Codec(config)
    rng = np.random.default_rng(seed)
    flow = random_weights(codec.flow, rng)
    hift = random_vocoder(codec.hift, rng)
    return {"flow": flow | _rotation(codec), "hift": as_published(hift, MAGNITUDE, DIRECTION)}


def write_parts(folder: Path, config: CosyVoice3Config = NARROW, seed: int = 0) -> None:
    """Write `flow.pt` and `hift.pt`."""
    for name, part in tensors(config, seed).items():
        torch.save(part, folder / f"{name}.pt")


def write_codec(folder: Path, config: CosyVoice3Config = NARROW, seed: int = 0) -> Path:
    """Write the converted codec to `codec/` in `folder`."""
    (folder / "codec").mkdir()
    parts = {f"{part}.{name}": each for part, named in tensors(config, seed).items() for name, each in named.items()}
    save_file(parts, folder / "codec" / "model.safetensors")
    return folder


def random_codec(config: CosyVoice3Config = NARROW, seed: int = 0) -> CosyVoice3Codec:
    """Return the codec with random weights."""
    codec = CosyVoice3Codec(config)
    rng = np.random.default_rng(seed)
    codec.flow.load_state_dict(random_weights(codec.flow, rng) | _rotation(codec))
    codec.hift.load_state_dict(random_vocoder(codec.hift, rng))
    return prepared(codec)


def _rotation(codec: CosyVoice3Codec) -> dict[str, Tensor]:
    name = "decoder.estimator.rotary_embed.inv_freq"
    return {name: codec.flow.state_dict()[name]}


def voice(seed: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a random voice: tokens int32 [n], mel float32 [2 n, M] and x-vector float32 [E]."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(NUM_CODES, size=num_tokens).astype(np.int32),
        rng.standard_normal((FRAMES_PER_TOKEN * num_tokens, MELS), dtype=np.float32),
        rng.standard_normal(SPEAKER, dtype=np.float32),
    )


SMALL: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
FIRST_MARKER = 300
SPECIAL = {"<|endoftext|>": FIRST_MARKER, "<|im_start|>": FIRST_MARKER + 1, "<|im_end|>": FIRST_MARKER + 2}
KNOWN = CosyVoice3Vocabulary(num_text_ids=FIRST_MARKER + 3 + len(ADDED) + 7, end_of_prompt=FIRST_MARKER + 3)
ENDING = 0.9  # factor on the end token's logit, so that some replies end by themselves
YAML = """\
__set_seed1: !apply:random.seed [1986]
sample_rate: 24000
token_frame_rate: 25
token_mel_ratio: 2
chunk_size: 25
num_decoding_left_chunks: -1
qwen_pretrain_path: ''
llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    speech_token_size: 6561
    mix_ratio: [5, 15]
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_frame_rate: !ref <token_frame_rate>
    pre_lookahead_len: 3
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content:
                t_scheduler: 'cosine'
                inference_cfg_rate: 0.7
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim_head: 64
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
    nb_harmonics: 8
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    conv_pre_look_right: 4
"""


# The published backbone and vocabulary.
QWEN2 = SMALL | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "max_position_embeddings": 32768,
}
PUBLISHED_SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
PUBLISHED = CosyVoice3Vocabulary()


def published_shapes(backbone: dict[str, Any], known: CosyVoice3Vocabulary) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the language model's tensors by published name, with the head at the end."""
    shapes = shapes_read(plan(backbone, known))
    return {name: shape for name, shape in shapes.items() if name != HEAD} | {HEAD: shapes[HEAD]}


def language_model(seed: int = 1) -> dict[str, np.ndarray]:
    """Return a dict from published name to random language-model tensor, excluding Qwen's own head."""
    made = random_tensors(published_shapes(SMALL, KNOWN), seed)
    made[HEAD] = made[HEAD] * np.float32(3.0)
    made[HEAD][KNOWN.num_codes :] *= ENDING
    return made


def write_networks(folder: Path) -> None:
    """Write the networks that encode recordings, as ONNX files with the published inputs, outputs and frame rates."""
    rng = np.random.default_rng(7)
    kernel = (rng.standard_normal((1, 128, 4)) * 50).astype(np.float32)
    tokens = helper.make_graph(
        [
            helper.make_node("Conv", ["feats", "kernel"], ["level"], kernel_shape=[4], strides=[4], pads=[0, 3]),
            helper.make_node("Abs", ["level"], ["size"]),
            helper.make_node("Cast", ["size"], ["number"], to=TensorProto.INT32),
            helper.make_node("Mod", ["number", "most"], ["code"]),
            helper.make_node("Squeeze", ["code", "axis"], ["indices"]),
        ],
        "tokenizer",
        [
            helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, 128, "T"]),
            helper.make_tensor_value_info("feats_length", TensorProto.INT32, [1]),
        ],
        [helper.make_tensor_value_info("indices", TensorProto.INT32, [1, None])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array(NUM_CODES, np.int32), "most"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    projection = (rng.standard_normal((80, SPEAKER)) / 4).astype(np.float32)
    speaker = helper.make_graph(
        [
            helper.make_node("Abs", ["input"], ["size"]),
            helper.make_node("ReduceMean", ["size", "axis"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "projection"], ["output"]),
        ],
        "campplus",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, "T", 80])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, SPEAKER])],
        [
            numpy_helper.from_array(projection, "projection"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    for name, graph in ((TOKENIZER, tokens), (SPEAKER_FILE, speaker)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, str(folder / name))


def write_release(folder: Path, seed: int = 1) -> Path:
    """Write a release to `folder`, in the published layout."""
    (folder / BACKBONE).mkdir(parents=True)
    (folder / CONFIG).write_text(YAML)
    (folder / BACKBONE / "config.json").write_text(json.dumps(SMALL))
    write_tokenizer(folder / BACKBONE, SPECIAL)
    made = {name: torch.from_numpy(each) for name, each in language_model(seed).items()}
    made[DROPPED[0]] = torch.ones(KNOWN.num_text_ids, SMALL["hidden_size"])
    torch.save(made, folder / "llm.pt")
    write_parts(folder, seed=seed)
    write_networks(folder)
    return folder


def write_published(folder: Path, words: Iterable[str], num_tokens: int = 75) -> Path:
    """Write a release at the published size, except for the networks that encode recordings.

    Its replies have no end, and a text of `words` has one token for each. The voice `anna` has words of its own.

    Args:
        folder: Folder to create.
        words: Words of the texts, the later ones with the space before them.
        num_tokens: Number of codes of the voice.
    """
    (folder / BACKBONE).mkdir(parents=True)
    (folder / CONFIG).write_text(YAML)
    (folder / BACKBONE / "config.json").write_text(json.dumps(QWEN2))
    write_tokenizer(folder / BACKBONE, PUBLISHED_SPECIAL, [word.replace(" ", "\u0120") for word in words])
    made = random_tensors(published_shapes(QWEN2, PUBLISHED), seed=1)
    made[HEAD][PUBLISHED.num_codes :] = 0  # far below the best of the other logits
    stored = {name: torch.from_numpy(each) for name, each in made.items()}
    torch.save(stored | {DROPPED[0]: stored[EMBEDDINGS]}, folder / "llm.pt")
    del made, stored
    write_parts(folder, WIDE)
    write_networks(folder)
    tokens, mel, x_vector = (torch.from_numpy(each)[None] for each in voice(3, num_tokens))
    text = torch.tensor([[*range(8), PUBLISHED.end_of_prompt, *range(8)]])
    anna = {"prompt_text": text, "flow_prompt_speech_token": tokens, "prompt_speech_feat": mel}
    torch.save({"anna": anna | {"flow_embedding": x_vector}}, folder / VOICES)
    return folder


def convert(folder: Path, seed: int = 1) -> Path:
    """Write the small release and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", seed)
    assert main(["cosyvoice3", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def recording(seconds: float = 2.3, seed: int = 5) -> np.ndarray:
    """Return noise of varying loudness, float32 [n] at 24 kHz."""
    rng = np.random.default_rng(seed)
    size = int(24_000 * seconds)
    loudness = 0.1 + 0.1 * np.sin(np.arange(size) / 4000)
    return (loudness * rng.standard_normal(size)).astype(np.float32)
