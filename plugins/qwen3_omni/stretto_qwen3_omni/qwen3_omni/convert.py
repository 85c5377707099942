"""Conversion of Qwen3-Omni releases: the thinker, and in `talker/` the talker with its codec.

The names, shapes and ids are those of https://huggingface.co/Qwen/Qwen3-Omni-30B-A3B-Instruct. The Thinking and
Captioner variants have no talker (`enable_audio_output`), so their checkpoints generate only text. All hyperparameters
come from config.json, because the defaults of the transformers classes belong to another model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from stretto.errors import CheckpointError, shown
from stretto.family.audio_format import KEY
from stretto.family.conversion import (
    Contents,
    Converted,
    Nested,
    Network,
    Release,
    Tokenizer,
    common_record,
    integer,
)
from stretto.family.image_format import KEY as IMAGE_KEY
from stretto.family.log_mel_encoder import tower_plan, tower_record
from stretto.family.plugin import VOCABULARY
from stretto.untrusted_files import check_value
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_qwen3_omni.qwen3_omni.family import NAME, ThinkerVocabulary
from stretto_qwen3_omni.qwen3_omni.model import LEVELS, tower_config
from stretto_qwen3_omni.qwen3_omni.model import NUMBERS as NUMBERS_OF_IMAGES
from stretto_qwen3_omni.qwen3_omni_talker import convert as talker
from stretto_qwen3_omni.qwen3_omni_talker.convert import Thinker, ThinkerRelease, ThinkerText, WholeRelease

THINKER = "thinker."
EMBEDDINGS = talker.EMBEDDINGS
AUDIO = "thinker_config.audio_config."
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
    config = ThinkerRelease.read({"enable_audio_output": "talker_config" in contents.config, **contents.config})
    whole = WholeRelease.read(contents.config) if config.enable_audio_output else None
    nested = [Nested("talker", talker.convert(whole, contents), talker.GENERATION)] if whole else []
    voices = [voice for model in nested for voice in model.converted.record[VOCABULARY]["speakers"]]
    if whole and not voices:
        raise CheckpointError("config.json: talker_config.speaker_id: expected at least one voice, got none")
    text = config.thinker_config.text_config
    audio = tower_record(contents.config, AUDIO, text.hidden_size) | {"model_type": "qwen3_omni_thinker_audio"}
    image = image_record(contents.config, text)
    state_layer = whole.talker_config.accept_hidden_layer if whole else 0
    num_levels = image["num_levels"]  # transformers takes the talker's states before adding the image's rows
    if state_layer != 0 and not num_levels < state_layer < text.num_hidden_layers:
        expected = (
            f"0 or a layer above the first {num_levels}, which add rows of images, below {text.num_hidden_layers}"
        )
        raise CheckpointError(f"config.json: talker_config.accept_hidden_layer: expected {expected}, got {state_layer}")
    vocab = replace(vocabulary(config.thinker_config, contents.tokenizer, voices), state_layer=state_layer)
    record = {
        **text.record,
        **common_record(NAME, vocab, vocab.num_ids, contents, has_head=True),
        KEY: audio,
        IMAGE_KEY: image,
    }
    parts: Plan = {
        name: Part(name.removeprefix(THINKER), (vocab.num_ids, text.hidden_size))
        for name in (EMBEDDINGS, f"{THINKER}lm_head.weight")
    }
    parts |= text.plan(f"{THINKER}model.") | tower_plan(audio, f"{THINKER}audio_tower.") | image_plan(image)
    networks = () if whole else (Network("codec", {}, {}),)
    return Converted(record, parts, (), networks=networks, nested=tuple(nested))


def vocabulary(thinker: Thinker, tokenizer: Tokenizer, voices: Sequence[str]) -> ThinkerVocabulary:
    """Return the thinker's ids; raise CheckpointError if the tokenizer has other ids than config.json."""
    text = thinker.text_config
    ids = tokenizer.ids_of(MARKERS.values(), text.vocab_size)
    for name, marker in (("audio", "audio_pad"), ("image", "image_pad"), ("vision_start", "image_start")):
        field = f"{name}_token_id"
        check_value(f"thinker_config.{field}", getattr(thinker, field), ids[MARKERS[marker]])
    return ThinkerVocabulary(
        num_ids=text.vocab_size,
        **{name: ids[marker] for name, marker in MARKERS.items()},
        voices=tuple(sorted(voices, key=lambda name: name != DEFAULT_VOICE)),
        max_model_len=text.max_position_embeddings,
    )


def image_record(config: Mapping[str, Any], text: ThinkerText) -> dict[str, Any]:
    """Return the `image_config` of a release; raise CheckpointError if it does not fit the backbone."""
    path = "thinker_config.vision_config."
    record = {name: integer(config, f"{path}{name}") for name in NUMBERS_OF_IMAGES}
    vision = config["thinker_config"]["vision_config"]
    check_value(f"{path}hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh")
    check_value(f"{path}in_channels", vision.get("in_channels", 3), 3)
    check_value(f"{path}out_hidden_size", record["out_hidden_size"], text.hidden_size)
    levels = vision.get(LEVELS)
    depth = record["depth"]
    is_list = isinstance(levels, list) and all(type(level) is int and 0 <= level < depth for level in levels)
    if not is_list or not len({*levels}) == len(levels) <= text.num_hidden_layers:
        expected = f"different layers in [0, {depth}), at most {text.num_hidden_layers}"
        raise CheckpointError(f"config.json: {path}{LEVELS}: expected {expected}, got {shown(levels)}")
    return {
        "model_type": "qwen3_omni_thinker_vision",
        **record,
        LEVELS: levels,
        "feature_size": 3 * record["temporal_patch_size"] * record["patch_size"] ** 2,
        "frames_per_row": record["spatial_merge_size"] ** 2,
        "num_levels": len(levels),
        "sections": text.sections,
    }


def image_plan(record: Mapping[str, Any]) -> Plan:
    """Return the plan of the image encoder's tensors for an `image_config`."""
    shapes = shapes_of(Qwen3OmniMoeVisionEncoder, tower_config(record))
    return {f"{THINKER}visual.{name}": Part(f"image_encoder.tower.{name}", shape) for name, shape in shapes.items()}
