"""IndexTTS-2's decoder and the networks that encode recordings, with random weights in the published files.

A tensor depends only on its name and shape. `write_networks` writes every file except `gpt.pth`, for which
`latents_tensors` and `gpt_tensors` return the tensors.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lab.releases.random_tensors import drawn_by_name
from plugins.indextts2.lab.random_gpt import CONFIG
from stretto.codecs.cosyvoice.shapes import Shapes
from stretto.weights.loading import load_strictly, shapes_of
from stretto_indextts2.codec import IndexTtsCodec, IndexTtsConfig
from stretto_indextts2.convert_codec import FLOW_FILE, QUANTIZER, SEMANTIC_FILES, TRANSPOSED, VOCODER, VOCODER_FOLDER
from stretto_indextts2.convert_voices import SPEAKER_FILE, SPEECH_FILE, STATISTICS_FILE, STYLES_FILE, VECTORS_FILE
from stretto_indextts2.flow import NUM_MELS, STYLE, FlowShape
from stretto_indextts2.latents import GptShape
from stretto_indextts2.voices import RecordingEncoder

EMOTION_SIZES = tuple(CONFIG["emo_num"])
NARROW = IndexTtsConfig(
    gpt=GptShape(
        width=128,
        layers=2,
        heads=2,
        num_text_ids=501,
        num_text_positions=66,
        num_code_ids=66,
        num_positions=63,
    ),
    flow=FlowShape(
        semantic=32,
        channels=24,
        width=32,
        layers=5,
        heads=2,
        inner=256,
        wave_layers=3,
    ),
    codebook_size=64,
    code_width=4,
    projections=(24, 20),
    vocoder_channels=128,
)
WIDE = IndexTtsConfig(
    gpt=GptShape(
        width=1280,
        layers=24,
        heads=20,
        num_text_ids=12_001,
        num_text_positions=602,
        num_code_ids=8194,
        num_positions=1818,
    ),
    flow=FlowShape(
        semantic=1024,
        channels=512,
        width=512,
        layers=13,
        heads=8,
        inner=1536,
        wave_layers=8,
    ),
    codebook_size=8192,
    code_width=8,
    projections=(256, 128),
    vocoder_channels=1536,
)
LOUDNESS = 0.02  # factor on the vocoder's last convolution, so that few samples are clipped
# of the networks that encode recordings
ROWS = 4
SUMMARY = 48
STATES = NARROW.flow.semantic
CONFORMER = 32
# Weights that are published as directions and norms.
NORMED = re.compile(
    r"(flow\.estimator\.(wavenet\..*\.conv\.conv|final_layer\.linear)|vocoder\.(conv_\w+|ups\.\d\.0|resblocks\.\d+\.convs.*)"
    r"|(quantizer|semantic)\.(out|in)_project)\.weight"
)
POINTWISE = re.compile(r"(quantizer|semantic)\.(out|in)_project\.weight")


def _conditioning(name: str, rows: int, width: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that define the sizes of a conformer and its perceiver."""
    conformer = f"{name}conditioning_encoder"
    perceiver = f"{name}perceiver_encoder"
    shapes: dict[str, tuple[int, ...]] = {
        f"{conformer}.after_norm.weight": (CONFORMER,),
        f"{conformer}.encoders.0.self_attn.pos_bias_u": (2, CONFORMER // 2),
        f"{conformer}.encoders.0.feed_forward.w_1.bias": (48,),
        f"{perceiver}.latents": (rows, width),
        f"{perceiver}.layers.0.0.to_q.weight": (128, width),
        f"{perceiver}.layers.0.1.2.weight": (width, inner),
    }
    return shapes | {f"{conformer}.encoders.{number}.after": () for number in range(layers)}


HEARING: Shapes = {
    "emovec_layer.weight": (NARROW.gpt.width, SUMMARY),
    "speech.mean": (STATES,),
    "speech.model.encoder.layers.0.self_attn.distance_embedding.weight": (73, 16),
    "speech.model.encoder.layers.0.ffn1.intermediate_dense.bias": (48,),
    "semantic.encoder.0.embed.bias": (24,),
    "semantic.encoder.0.convnext.0.pwconv1.bias": (40,),
    "semantic.encoder.0.convnext.1.pwconv1.bias": (40,),
    "semantic.codebook.weight": (NARROW.codebook_size, NARROW.code_width),
    **_conditioning("", ROWS, NARROW.gpt.width, NARROW.gpt.width * 4 // 3, 2),
    **_conditioning("emo_", 1, SUMMARY, SUMMARY * 4 // 3, 1),
}


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return random tensors with these shapes by name."""
    return {name: torch.from_numpy(drawn_by_name(name, shape)) for name, shape in shapes.items()}


def codec_tensors() -> dict[str, Tensor]:
    """Return random tensors of the narrow codec by its names."""
    tensors = drawn(shapes_of(IndexTtsCodec, NARROW))
    tensors["vocoder.conv_post.weight"] *= LOUDNESS
    return tensors


def codec() -> IndexTtsCodec:
    """Return the narrow codec with random weights."""
    narrow = IndexTtsCodec(NARROW)
    load_strictly(narrow, codec_tensors(), Path("codec"))
    return narrow.eval().requires_grad_(False)


def hearing_tensors() -> dict[str, Tensor]:
    """Return random tensors of the narrow networks that encode recordings, by our names."""
    with torch.device("meta"):
        encoder = RecordingEncoder(HEARING, EMOTION_SIZES)
    tensors = drawn({name: tensor.shape for name, tensor in encoder.state_dict().items()})
    tensors["speech.var"] = 1 + tensors["speech.var"].abs()
    return tensors


def latents_tensors() -> dict[str, Tensor]:
    """Return the tensors of `gpt.pth` that the second pass reads."""
    return _published(codec_tensors(), {"latents.": ""})


def gpt_tensors() -> dict[str, Tensor]:
    """Return the tensors of `gpt.pth` that the networks for recordings read."""
    names = ("conditioning_encoder.", "perceiver_encoder.", "emo_conditioning", "emo_perceiver", "emo_layer", "emovec")
    return {name: tensor for name, tensor in hearing_tensors().items() if name.startswith(names)}


def _published(tensors: Mapping[str, Tensor], renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors below the prefixes `renamed`, by published names and in published layouts."""
    published = dict[str, Tensor]()
    for ours, theirs in renamed.items():
        for name, tensor in tensors.items():
            if not name.startswith(ours):
                continue
            stem = theirs + name.removeprefix(ours)
            if NORMED.fullmatch(name):
                weight = tensor[..., None] if POINTWISE.fullmatch(name) else tensor
                published[f"{stem}_v"] = 3 * weight
                published[f"{stem}_g"] = torch.linalg.vector_norm(
                    weight.double(), dim=[*range(1, weight.ndim)], keepdim=True
                ).float()
            else:
                published[stem] = tensor.T.contiguous() if TRANSPOSED.fullmatch(name) else tensor
    return published


def published_files() -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each published network except those in `gpt.pth`."""
    speaking = codec_tensors()
    hearing = hearing_tensors()
    semantic = _published(speaking, {"quantizer.": QUANTIZER}) | _published(
        hearing, {"semantic.encoder.": "encoder.", "semantic.in_project.": f"{QUANTIZER}in_project."}
    )
    return {
        "cfm": _published(speaking, {"flow.": ""}),
        "length_regulator": _published(speaking, {"length_regulator.": ""}),
        "gpt_layer": _published(speaking, {"gpt_layer.": ""}),
        "semantic": semantic,
        "vocoder": _published(speaking, {"vocoder.": ""}),
        "speech": _published(hearing, {"speech.model.": ""}),
        "statistics": {name: hearing[f"speech.{name}"] for name in ("mean", "var")},
        "speaker": _published(hearing, {"speaker_encoder.": ""}),
    }


def write_networks(folder: Path) -> None:
    """Write all files of the release that contain networks, except `gpt.pth`."""
    files = published_files()
    hearing = hearing_tensors()
    for path in (SPEECH_FILE, f"{VOCODER_FOLDER}/config.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    flow = {name: files[name] for name in ("length_regulator", "gpt_layer")}
    # with tensors that no network reads
    flow["cfm"] = {f"module.{name}": tensor for name, tensor in files["cfm"].items()}
    flow["cfm"]["module.estimator.input_pos"] = torch.arange(8)
    torch.save({"net": flow, "epoch": 1}, folder / FLOW_FILE)
    save_file(files["semantic"], folder / SEMANTIC_FILES[0])
    torch.save({"generator": files["vocoder"]}, folder / f"{VOCODER_FOLDER}/bigvgan_generator.pt")
    (folder / f"{VOCODER_FOLDER}/config.json").write_text(json.dumps(VOCODER))
    save_file(files["speech"], folder / SPEECH_FILE)
    torch.save(files["statistics"], folder / STATISTICS_FILE)
    torch.save(files["speaker"], folder / SPEAKER_FILE)
    torch.save(hearing["emotion_styles"], folder / STYLES_FILE)
    torch.save(hearing["emotion_vectors"], folder / VECTORS_FILE)


def voice(seed: int, num_tokens: int = 20, num_frames: int = 34, config: IndexTtsConfig = NARROW) -> list[np.ndarray]:
    """Return the arguments of `IndexTtsCodec.add_voice` for a random voice."""
    random = np.random.default_rng(seed)
    return [
        random.integers(config.codebook_size, size=num_tokens).astype(np.int32),
        random.standard_normal((num_frames, NUM_MELS), np.float32),
        random.standard_normal(STYLE, np.float32),
        random.integers(2, config.gpt.num_text_ids, size=7).astype(np.int32),
        random.standard_normal(ROWS * config.gpt.width, np.float32),
    ]
