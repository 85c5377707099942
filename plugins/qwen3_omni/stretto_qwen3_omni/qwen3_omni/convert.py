"""Conversion of Qwen3-Omni releases: the thinker, and in `talker/` the talker with its codec.

The names, shapes and ids are those of https://huggingface.co/Qwen/Qwen3-Omni-30B-A3B-Instruct. The Thinking and
Captioner variants have no talker (`enable_audio_output`), so their checkpoints generate only text. All hyperparameters
come from config.json, because the defaults of the transformers classes belong to another model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from stretto.codecs.qwen3_12hz.code2wav import NO_DECODER
from stretto.errors import CheckpointError, shown
from stretto.families.qwen3_tts.convert import Numbers, layer_shapes, sections
from stretto.family.audio_format import KEY
from stretto.family.conversion import (
    Contents,
    Converted,
    Nested,
    Network,
    Release,
    Tokenizer,
    common_record,
)
from stretto.family.image_format import KEY as IMAGE_KEY
from stretto.family.log_mel_encoder import NUMBERS, check_windows, tower_plan
from stretto.family.plugin import VOCABULARY
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_qwen3_omni.qwen3_omni.family import NAME, ThinkerVocabulary
from stretto_qwen3_omni.qwen3_omni.model import LEVELS, tower_config
from stretto_qwen3_omni.qwen3_omni.model import NUMBERS as NUMBERS_OF_IMAGES
from stretto_qwen3_omni.qwen3_omni_talker import convert as talker

THINKER = "thinker."
EMBEDDINGS = talker.EMBEDDINGS
CHUNKS = 32  # seconds of audio that are convolved at once, which take 0.4 GB in float32
DEFAULT_VOICE = "ethan"  # in transformers
MARKERS = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "audio_pad": "<|audio_pad|>",
    "image_start": "<|vision_start|>",
    "image_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    numbers = Numbers(contents.config)
    numbers.same("model_type", "qwen3_omni_moe")
    speaks = contents.config.get("enable_audio_output", "talker_config" in contents.config) is not False
    nested = [Nested("talker", talker.convert(release, contents), talker.GENERATION)] if speaks else []
    voices = [voice for each in nested for voice in each.made.record[VOCABULARY]["speakers"]]
    if speaks and not voices:
        raise CheckpointError("config.json: talker_config.speaker_id: expected at least one voice, got none")
    known = vocabulary(numbers, contents.tokenizer, voices)
    text = numbers.part("thinker_config").part("text_config")
    audio = tower_record(numbers.part("thinker_config").part("audio_config"), text)
    image = image_record(numbers.part("thinker_config").part("vision_config"), text)
    if 0 < known.state_layer <= image["num_levels"]:  # transformers takes these states before adding the image's rows
        expected = f"0 or a layer above the first {image['num_levels']}, which add rows of images"
        raise CheckpointError(f"config.json: accept_hidden_layer: expected {expected}, got {known.state_layer}")
    record = {
        **talker.backbone_record(text),
        **common_record(NAME, known, known.num_ids, contents, has_head=True),
        KEY: audio,
        IMAGE_KEY: image,
    }
    parts = plan(known, text) | tower_plan(audio, f"{THINKER}audio_tower.") | image_plan(image)
    networks = () if speaks else (Network("codec", NO_DECODER, {}),)
    return Converted(record, parts, (), networks=networks, nested=tuple(nested))


def vocabulary(numbers: Numbers, tokenizer: Tokenizer, voices: Sequence[str]) -> ThinkerVocabulary:
    """Return the ids of the thinker; raise CheckpointError if the model is not supported.

    Args:
        numbers: config.json of the release.
        tokenizer: Text tokenizer.
        voices: Names of the talker's voices; none without a talker.
    """
    thinker = numbers.part("thinker_config")
    text = thinker.part("text_config")
    text.same("hidden_act", "silu")
    text.same("attention_bias", False, default=False)
    text.same("tie_word_embeddings", False, default=False)
    text.same("shared_expert_intermediate_size", 0, default=0)
    text.same("decoder_sparse_step", 1, default=1)
    text.same("mlp_only_layers", [], default=[])
    sections(text)
    num_ids = text.number("vocab_size")
    ids = tokenizer.ids_of(MARKERS.values(), num_ids)
    for name, marker in (("audio", "audio_pad"), ("image", "image_pad"), ("vision_start", "image_start")):
        thinker.same(f"{name}_token_id", ids[MARKERS[marker]])
    state_layer = 0
    if voices:
        state_layer = numbers.part("talker_config").token("accept_hidden_layer", text.number("num_hidden_layers"))
    return ThinkerVocabulary(
        num_ids=num_ids,
        **{name: ids[marker] for name, marker in MARKERS.items()},
        voices=tuple(sorted(voices, key=lambda name: name != DEFAULT_VOICE)),
        state_layer=state_layer,
        max_model_len=text.number("max_position_embeddings"),
    )


def tower_record(audio: Numbers, text: Numbers) -> dict[str, Any]:
    """Return `audio_config` for config.json; raise CheckpointError if the audio encoder does not fit the backbone."""
    audio.same("activation_function", "gelu")
    audio.same("output_dim", text.number("hidden_size"))
    record = {name: audio.number(name) for name in NUMBERS if name != "activation_function"}
    check_windows(record)
    record |= {
        "activation_function": "gelu",
        "conv_chunksize": min(record["conv_chunksize"], CHUNKS),
        "do_normalize": False,
    }
    return {"model_type": "qwen3_omni_thinker_audio", **record}


def image_record(vision: Numbers, text: Numbers) -> dict[str, Any]:
    """Return `image_config` for config.json; raise CheckpointError if the image encoder does not fit the backbone."""
    vision.same("hidden_act", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    vision.same("in_channels", 3, default=3)
    vision.same("out_hidden_size", text.number("hidden_size"))
    record: dict[str, Any] = {name: vision.number(name) for name in NUMBERS_OF_IMAGES}
    levels = vision.entry(LEVELS, list)
    depth = record["depth"]
    if len({*levels}) != len(levels) or not all(type(level) is int and 0 <= level < depth for level in levels):
        raise CheckpointError(f"config.json: {LEVELS}: expected different layers in [0, {depth}), got {shown(levels)}")
    if len(levels) > text.number("num_hidden_layers"):
        raise CheckpointError(f"config.json: {LEVELS}: expected at most as many layers as the backbone has")
    return {
        "model_type": "qwen3_omni_thinker_vision",
        **record,
        LEVELS: levels,
        "feature_size": 3 * record["temporal_patch_size"] * record["patch_size"] ** 2,
        "frames_per_row": record["spatial_merge_size"] ** 2,
        "num_levels": len(levels),
        "sections": sections(text),
    }


def image_plan(record: Mapping[str, Any]) -> Plan:
    """Return the plan of the image encoder's tensors; `record` is the `image_config` to be written."""
    shapes = shapes_of(Qwen3OmniMoeVisionEncoder, tower_config(record))
    return {f"{THINKER}visual.{name}": Part(f"image_encoder.tower.{name}", shape) for name, shape in shapes.items()}


def plan(known: ThinkerVocabulary, text: Numbers) -> Plan:
    """Return the plan of the backbone's tensors, which lose the prefix `thinker.`."""
    model = f"{THINKER}model."
    width = text.number("hidden_size")
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDINGS: (known.num_ids, width),
        f"{THINKER}lm_head.weight": (known.num_ids, width),
    }
    shapes |= {name: shape for name, shape in layer_shapes(model, text).items() if ".mlp." not in name}
    for layer in range(text.number("num_hidden_layers")):
        shapes |= talker.expert_shapes(f"{model}layers.{layer}.mlp.", text)
    return {name: Part(name.removeprefix(THINKER), shape) for name, shape in shapes.items()}
