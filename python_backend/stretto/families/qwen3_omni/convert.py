"""Conversion of Qwen3-Omni releases: the thinker, and in `talker/` the talker with its codec.

The names, shapes and ids are those of https://huggingface.co/Qwen/Qwen3-Omni-30B-A3B-Instruct. The Thinking and
Captioner variants have no talker (`enable_audio_output`), so their checkpoints generate only text. The encoder of
images and video is left out. All hyperparameters come from config.json, because the defaults of the transformers
classes belong to another model.
"""

from collections.abc import Sequence
from typing import Any

from stretto.codecs.qwen3_12hz.code2wav import NO_DECODER
from stretto.errors import CheckpointError
from stretto.families.audio_format import KEY
from stretto.families.conversion import (
    Contents,
    Converted,
    Nested,
    Network,
    Release,
    Tokenizer,
    common_record,
)
from stretto.families.log_mel_encoder import NUMBERS, check_windows, tower_plan
from stretto.families.plugin import VOCABULARY
from stretto.families.qwen3_omni.family import NAME, ThinkerVocabulary
from stretto.families.qwen3_omni_talker import convert as talker
from stretto.families.qwen3_tts.convert import Numbers, check_positions, layer_shapes
from stretto.weights.loading import Part, Plan

THINKER = "thinker."
EMBEDDINGS = talker.EMBEDDINGS
LEFT_OUT = (f"{THINKER}visual.",)
CHUNKS = 32  # seconds of audio that are convolved at once, which take 0.4 GB in float32
DEFAULT_VOICE = "ethan"  # in transformers
MARKERS = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "audio_pad": "<|audio_pad|>",
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
    record = {
        **talker.backbone_record(text),
        **common_record(NAME, known, known.num_ids, contents, has_head=True),
        KEY: audio,
    }
    parts = plan(known, text) | tower_plan(audio, f"{THINKER}audio_tower.")
    networks = () if speaks else (Network("codec", NO_DECODER, {}),)
    return Converted(record, parts, LEFT_OUT, networks=networks, nested=tuple(nested))


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
    check_positions(text)
    num_ids = text.number("vocab_size")
    ids = tokenizer.ids_of(MARKERS.values(), num_ids)
    thinker.same("audio_token_id", ids[MARKERS["audio_pad"]])
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


def plan(known: ThinkerVocabulary, text: Numbers) -> Plan:
    """Return the plan of the backbone's tensors, which lose the prefix `thinker.`."""
    model, width = f"{THINKER}model.", text.number("hidden_size")
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDINGS: (known.num_ids, width),
        f"{THINKER}lm_head.weight": (known.num_ids, width),
    }
    shapes |= {name: shape for name, shape in layer_shapes(model, text).items() if ".mlp." not in name}
    for layer in range(text.number("num_hidden_layers")):
        shapes |= talker.expert_shapes(f"{model}layers.{layer}.mlp.", text)
    return {name: Part(name.removeprefix(THINKER), shape) for name, shape in shapes.items()}
