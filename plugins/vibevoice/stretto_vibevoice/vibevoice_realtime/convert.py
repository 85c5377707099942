"""Conversion of VibeVoice-Realtime-0.5B in the authors' format, with the voices in its folder `voices`.

https://huggingface.co/microsoft/VibeVoice-Realtime-0.5B: `config.json`, `model.safetensors`. The tokenizer is that of
Qwen2.5. The voices are in the authors' code repository (see `voices.py`). The acoustic encoder is not published.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Network, Release, common_record
from stretto.untrusted_files import check_value, entry
from stretto.weights.backbones import shapes
from stretto.weights.loading import Part, Plan
from stretto_vibevoice.codec import (
    MODEL_TYPE,
    PARTS,
    SAMPLE_RATE,
    TokenizerConfig,
    codec_shapes,
    published_name,
)
from stretto_vibevoice.vibevoice.convert import (
    AUTHORS,
    SCALES,
    AuthorsConfig,
    authors_name,
    head_layers,
    llama_numbers,
    network_from_authors,
    qwen2_backbone,
    scale,
)
from stretto_vibevoice.vibevoice_realtime.family import (
    FRAME_RATE,
    MAX_ROWS,
    NAME,
    VibeVoiceRealtimeVocabulary,
    VoiceRows,
)
from stretto_vibevoice.vibevoice_realtime.voices import Sizes, VoiceStates, read_voices

IS_FLOAT32 = True
EMBEDDINGS = "model.language_model.embed_tokens.weight"
LAYERS = "model.layers."
KIND = "vibevoice_streaming"
NUM_SPEECH_LAYERS = "tts_backbone_num_hidden_layers"
MARKS = {"tts_eos_classifier.fc1.weight": "VibeVoice Realtime", "model.tts_input_types.weight": "VibeVoice Realtime"}
# The speech model reads no ids, the text model ends without a norm, and voices are published encoded.
DROPPED = (
    "model.tts_language_model.embed_tokens.weight",
    "model.language_model.norm.weight",
    "model.acoustic_tokenizer.encoder.",
    "lm_head.weight",
)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with all voices of the release."""
    shape = Shape(contents.config)
    contents.check_latent_model(shape.num_tokens)
    scales = {name: scale(contents.tensors, authors_name(f"model.{name}")) for name in SCALES}
    voices = read_voices(release.folder, shape.sizes)
    vocabulary = VibeVoiceRealtimeVocabulary(
        num_text_ids=shape.num_tokens,
        num_numbers=shape.acoustic.size,
        voices=tuple(
            VoiceRows(name, voice.texts.shape[1], voice.speech.shape[1] - 1) for name, voice in voices.items()
        ),
        max_model_len=min(shape.backbone.max_position_embeddings, MAX_ROWS),
    )
    record = {
        "architectures": ["StrettoVibeVoiceRealtimeForCausalLM"],
        **shape.llama,
        "num_hidden_layers": shape.sizes.num_layers,
        "num_text_layers": shape.sizes.num_text_layers,
        "max_position_embeddings": vocabulary.max_model_len,
        "diffusion_head": shape.head,
        **common_record(NAME, vocabulary, vocabulary.vocab_size, contents),
    }
    codec = {"model_type": MODEL_TYPE, PARTS: shape.section, "has_encoder": False, **scales}
    parts: Plan = {
        authors_name(f"model.audio_tower.{published_name(name)}"): Part(name, stored)
        for name, stored in codec_shapes(shape.acoustic, has_encoder=False).items()
    }
    return Converted(
        record,
        plan(shape, vocabulary, list(voices.values())),
        DROPPED,
        tuple(authors_name(f"model.{name}") for name in SCALES),
        (Network("codec", codec, parts),),
    )


class Shape:
    """Hyperparameters of a release, read from its config.json."""

    def __init__(self, config: Mapping[str, Any]):
        check_value("model_type", config.get("model_type"), KIND)
        text = dict(entry(config, "decoder_config"))
        head = AuthorsConfig.read(config).diffusion_head_config
        backbone = qwen2_backbone(text, "decoder_config")
        number = entry(config, NUM_SPEECH_LAYERS)
        if type(number) is not int or not 1 <= number < backbone.num_hidden_layers:
            expected = f"an integer in [1, {backbone.num_hidden_layers - 1}]"
            raise CheckpointError(f"{NUM_SPEECH_LAYERS}: expected {expected}, got {shown(number)}")
        self.backbone = backbone
        self.num_tokens = backbone.vocab_size
        width = backbone.hidden_size
        size = width // backbone.num_attention_heads
        layers = backbone.num_hidden_layers
        self.sizes = Sizes(layers - number, number, backbone.num_key_value_heads, size, width)
        self.section = network_from_authors(config, AUTHORS)
        self.acoustic = TokenizerConfig.from_record(self.section, PARTS)
        if self.acoustic.hop * FRAME_RATE != SAMPLE_RATE:
            expected = f"{SAMPLE_RATE / FRAME_RATE:g} samples per frame"
            raise CheckpointError(f"{AUTHORS}.encoder_ratios: expected {expected}, got {self.acoustic.hop}")
        check_value("diffusion_head_config.hidden_size", head.hidden_size, width)
        check_value("diffusion_head_config.latent_size", head.latent_size, self.acoustic.size)
        self.head = head.record
        self.llama = llama_numbers(backbone)


def plan(shape: Shape, vocabulary: VibeVoiceRealtimeVocabulary, voices: list[VoiceStates]) -> Plan:
    """Return the language-model tensors to write, by published name. Voices are written beside the embeddings."""
    parts: Plan = {}
    width = shape.sizes.width
    sizes = shape.sizes

    def add(name: str, ours: str, *stored: int) -> None:
        parts[name] = Part(ours, stored)

    def layer(name: str, ours: str, rows: int, columns: int, bias: bool = False) -> None:
        add(f"{name}.weight", f"{ours}.weight", rows, columns)
        if bias:
            add(f"{name}.bias", f"{ours}.bias", rows)

    def embeddings(stored: Tensor) -> Tensor:
        # neither frames nor the rows of voices have embeddings
        return torch.cat([stored, stored.new_zeros(vocabulary.vocab_size - shape.num_tokens, width)])

    also = tuple(
        Part(name, (shape.num_tokens, width), partial(_given, values), torch.float32)
        for name, values in voice_tensors(voices).items()
    )
    parts[EMBEDDINGS] = Part("model.embed_tokens.weight", (shape.num_tokens, width), embeddings, also=also)
    stacks = (
        ("model.language_model.layers.", "text.layers.", sizes.num_text_layers, ""),
        ("model.tts_language_model.layers.", "model.layers.", sizes.num_layers, "self_attn."),
    )
    for published, ours, number, attention in stacks:
        for name, stored in shapes({**shape.llama, "num_hidden_layers": number}).items():
            if name.startswith(LAYERS):
                within = name.removeprefix(LAYERS)
                add(published + within, ours + within.replace("self_attn.", attention), *stored)
    add("model.tts_language_model.norm.weight", "model.norm.weight", width)
    add("model.tts_input_types.weight", "types", 2, width)
    layer("model.acoustic_connector.fc1", "acoustic_connector.linear_1", width, shape.acoustic.size, bias=True)
    add("model.acoustic_connector.norm.weight", "acoustic_connector.act.weight", width)
    layer("model.acoustic_connector.fc2", "acoustic_connector.linear_2", width, width, bias=True)
    layer("tts_eos_classifier.fc1", "end_classifier.fc1", width, width, bias=True)
    layer("tts_eos_classifier.fc2", "end_classifier.fc2", 1, width, bias=True)
    for ours, rows, columns in head_layers(shape.head, shape.acoustic.size, width):
        published = authors_name(f"model.diffusion_head.{ours}.weight")
        add(published, f"head.{ours}.weight", rows, columns)
    for number in range(shape.head["num_hidden_layers"]):
        add(f"model.prediction_head.layers.{number}.norm.weight", f"head.layers.{number}.norm.weight", width)
    return parts


def voice_tensors(voices: list[VoiceStates]) -> dict[str, Tensor]:
    """Return the tensors of all voices by their names in the checkpoint."""
    return {
        "voice_rows": torch.cat([voice.speech for voice in voices], 1),
        "text.voices": torch.cat([voice.texts for voice in voices], 1),
        "first_states": torch.stack([voice.state for voice in voices]),
    }


def _given(values: Tensor, stored: Tensor) -> Tensor:
    """Return `values`, on torch's device `meta` if the published tensor `stored` is on it."""
    return values.to("meta") if stored.is_meta else values
