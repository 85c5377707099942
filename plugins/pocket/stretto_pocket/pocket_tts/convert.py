"""Conversion of Pocket TTS releases: names and shapes as published by Kyutai, one folder per language and size.

https://huggingface.co/kyutai/pocket-tts: `model.safetensors`, `tokenizer.json` or `tokenizer.model`, and voices as
`embeddings/<name>.safetensors`. The authors' package has a YAML file for each release. `config/` has those of the
newest releases, which are chosen by the folder's name. The weights file also contains the codec, which is written to
`codec/`.

A voice is published only as the keys and values of all layers. The rows that produced them are recovered (`voices.py`)
and appended to the embedding table after the text tokens, so that a voice is a sequence of ids. The gated repository
also contains the codec's encoder, which is needed to clone recorded voices.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Network, Release, common_record
from stretto.untrusted_files import entry, released_file, released_folder
from stretto.weights.loading import Part, Plan, open_tensors, require
from stretto_pocket.codec import PocketConfig, codec_shapes
from stretto_pocket.pocket_tts.family import NAME, PocketVocabulary, TextRules
from stretto_pocket.pocket_tts.recognise import packaged_config
from stretto_pocket.pocket_tts.voices import VoiceBackbone, recover_rows

IS_BARE = True  # the tokenizer may be of any kind
IS_FLOAT32 = True  # no other dtype is accepted
CONFIG = "the release's YAML file, which is in pocket_tts/config of the authors' package"
TRANSFORMERS = "stretto_pocket.pocket_tts.convert_transformers"
EMBEDDINGS = "flow_lm.conditioner.embed.weight"
MARKS = {"flow_lm.out_eos.weight": "Pocket TTS"}
VOICES = "embeddings"
# Published names of the flow head's modules, by our names.
OF_FLOW = {
    "condition": "cond_embed",
    "enter": "input_proj",
    "modulation": "final_layer.adaLN_modulation.1",
    "leave": "final_layer.linear",
}
NUM_TIMES = {"lsd": 2, "flow_matching": 1, "drifting": 0, "pointwise": 0}
NUM_FREQUENCIES = 128
# First voice by part of the folder name, as in the authors' package; the others follow in alphabetical order.
FIRST_VOICES = {
    "italian": "giovanni",
    "spanish": "lola",
    "german": "juergen",
    "portuguese": "rafael",
    "french": "estelle",
    "dutch": "daan",
}
FIRST_VOICE = "alba"
DEFAULT_END_THRESHOLD = -4.0
MAX_MODEL_LEN = 2048
SPEAKER = "flow_lm.speaker_proj_weight"
CLONING = (SPEAKER, "mimi.encoder.", "mimi.encoder_transformer.", "mimi.downsample.")


def located(release: Release) -> Release:
    """Return the release; without a config, with our config for the published release of that folder name."""
    config = packaged_config(release.folder.absolute().name)
    return release if release.config is not None or config is None else replace(release, config=config)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including all voices in the release folder."""
    if "flow_lm" not in contents.config:
        got = "none" if release.config is None else f"{release.config} without flow_lm"
        raise CheckpointError(f"--config: expected {CONFIG}, got {got}")
    shape = Shape(contents.config)
    if contents.tokenizer.size != shape.num_tokens:
        raise CheckpointError(
            f"{contents.tokenizer.folder}: expected {shape.num_tokens} tokens, got {contents.tokenizer.size}"
        )
    contents.check_latent_model(shape.num_tokens)
    clones = can_clone(shape, contents.tensors)
    folded = shape.folded
    needed = {name: planned.stored for name, planned in plan(shape, contents.tensors, {}, clones).items()}
    require(contents.tensors, folded | needed)  # all weights, because the rows of voices are computed with them
    voices = read_voices(release.folder, shape, contents.tensors, clones)
    vocabulary = PocketVocabulary(
        num_text_ids=shape.num_tokens + 1,
        num_words=shape.num_words,
        voices=tuple((name, len(rows)) for name, rows in voices.items()),
        flow=shape.flow,
        temperature=float(contents.config.get("default_temperature", 0.3)),
        tail_rows=contents.config.get("model_recommended_frames_after_eos"),
        max_model_len=MAX_MODEL_LEN,
        text=text_rules(contents.config),
        clones=clones,
        has_voice_begin=shape.has_bos_before_voice,
    )
    record = {
        "architectures": ["StrettoPocketForCausalLM"],
        "model_type": "qwen3",  # the Llama config requires a width that is a multiple of the number of heads
        **shape.numbers,
        "max_position_embeddings": MAX_MODEL_LEN,
        **common_record(NAME, vocabulary, vocabulary.vocab_size, contents),
    }
    networks = (codec_network(contents, clones),)
    dropped = () if clones else CLONING
    return Converted(record, plan(shape, contents.tensors, voices, clones), dropped, tuple(folded), networks)


def can_clone(shape: "Shape", tensors: Mapping[str, Tensor]) -> bool:
    """Return True if a release has usable weights for encoding voice recordings.

    The repository without voice cloning contains zeros instead of these weights, or omits them. Latents of recordings
    and latents of frames must have the same size, because rows contain both.
    """
    names = [name for name in tensors if name.startswith(CLONING)]
    is_trained = SPEAKER in names and all(tensors[name].any() for name in names if name.endswith("weight"))
    return is_trained and shape.num_voice_words == shape.num_words


class Shape:
    """Language-model hyperparameters, read from a release's YAML file. A missing value raises CheckpointError."""

    def __init__(self, config: Mapping[str, Any]):
        lm = entry(config, "flow_lm")
        mimi = entry(config, "mimi")
        stack = entry(lm, "transformer")
        flow = entry(lm, "flow")
        table = entry(lm, "lookup_table")
        self.width = entry(stack, "d_model")
        heads = entry(stack, "num_heads")
        self.kv_heads = stack.get("num_kv_heads") or heads
        self.attention_width = stack.get("attn_dim") or self.width
        self.head_dim = self.attention_width // heads
        self.inner = stack.get("dim_feedforward") or self.width * entry(stack, "hidden_scale")
        self.num_layers = entry(stack, "num_layers")
        self.theta = float(entry(stack, "max_period"))
        self.flow = flow.get("type", "lsd")
        self.flow_width = entry(flow, "dim")
        self.num_blocks = entry(flow, "depth")
        self.num_tokens = entry(table, "n_bins")
        self.rank = table.get("rank")
        self.state = lm.get("z_dim")
        self.num_words = entry(entry(mimi, "quantizer"), "dimension")
        self.num_voice_words = mimi.get("inner_dim") or entry(entry(mimi, "seanet"), "dimension")
        self.has_bos_before_voice = bool(lm.get("insert_bos_before_voice", False))
        self.threshold = float(config.get("default_eos_threshold", DEFAULT_END_THRESHOLD))
        if self.flow not in NUM_TIMES:
            raise CheckpointError(f"flow.type: expected one of {', '.join(NUM_TIMES)}, got {shown(self.flow)}")
        self.numbers = {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.theta,
            "flow": {
                "kind": self.flow,
                "width": self.flow_width,
                "num_blocks": self.num_blocks,
                "num_frequencies": NUM_FREQUENCIES,
                "state_width": self.state,
            },
        }

    @property
    def folded(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that are merged into the embeddings."""
        shapes: dict[str, tuple[int, ...]] = {"flow_lm.bos_emb": (self.num_words,)}
        if self.has_bos_before_voice:
            shapes["flow_lm.bos_before_voice"] = (1, 1, self.width)
        return shapes if self.rank is None else shapes | {"flow_lm.conditioner.proj.weight": (self.width, self.rank)}

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


def text_rules(config: Mapping[str, Any]) -> TextRules:
    """Return the text changes that a release's YAML file prescribes."""
    replaced = config.get("replace_characters") or {}
    if any(len(str(one)) != 1 for one in replaced):
        raise CheckpointError(f"config.yaml: replace_characters: expected single characters, got {shown(replaced)}")
    return TextRules(
        replaced=tuple((str(one), str(other)) for one, other in replaced.items()),
        drops_semicolons=bool(config.get("remove_semicolons", False)),
        ends_with_mark=bool(config.get("append_terminal_punctuation", True)),
        begins_with_capital=bool(config.get("capitalize_first_letter", True)),
        pads_short=bool(config.get("pad_with_spaces_for_short_inputs", False)),
    )


def plan(shape: Shape, tensors: Mapping[str, Tensor], voices: Mapping[str, Tensor], clones: bool) -> Plan:
    """Return the tensors to write, by published name."""
    width = shape.width
    flow = shape.flow_width
    words = shape.num_words
    state = shape.state or width
    parts: Plan = {}

    def add(name: str, ours: str, *size: int, edit: Callable[[Tensor], Tensor] | None = None) -> None:
        parts[f"flow_lm.{name}"] = Part(ours, size, edit)

    def add_linear(name: str, ours: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", f"{ours}.weight", rows, columns)
        add(f"{name}.bias", f"{ours}.bias", rows)

    def other(name: str) -> Tensor:
        return tensors[f"flow_lm.{name}"].float()

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings [V, H]: text, beginning of speech, frames, end, beginning of a voice, voices.

        Products are in float64, because the last bits of float32 products depend on the processor or even on addresses.
        """
        num_rows = sum(len(rows) for rows in voices.values())
        if stored.is_meta:
            return torch.empty(shape.num_tokens + 7 + num_rows, width, device="meta")
        text = stored if shape.rank is None else (stored.double() @ other("conditioner.proj.weight").double().T).float()
        bos = (other("input_linear.weight").double() @ other("bos_emb").double()).float()
        begin = other("bos_before_voice")[0] if shape.has_bos_before_voice else torch.zeros(1, width)
        return torch.cat([text, bos[None], torch.zeros(4, width), begin, *voices.values()])

    def end_of_speech(stored: Tensor) -> Tensor:
        if stored.is_meta:
            return torch.empty(width, device="meta")
        projected = stored.double() if shape.state is None else stored.double() @ other("z_proj.weight").double()
        return projected[0].float()

    add("conditioner.embed.weight", "model.embed_tokens.weight", shape.num_tokens + 1, shape.rank or width, edit=table)
    add("input_linear.weight", "connector.weight", width, words)
    if clones:
        add("speaker_proj_weight", "voice_connector.weight", width, words)
    add("out_norm.weight", "model.norm.weight", width)
    add("out_norm.bias", "model.norm.bias", width)
    add("out_eos.weight", "end_of_speech.weight", 1, state, edit=end_of_speech)
    add("out_eos.bias", "end_of_speech.bias", 1, edit=lambda stored: stored - shape.threshold)
    if shape.state is not None:
        add("z_proj.weight", "flow.state.weight", state, width)
    for index in range(shape.num_layers):
        add_layer(shape, index, add)
    flow_net = "flow_net."
    for layer, name in OF_FLOW.items():
        rows = {"modulation": 2 * flow, "leave": words}.get(layer, flow)
        add_linear(flow_net + name, f"flow.{layer}", rows, {"condition": state, "enter": words}.get(layer, flow))
    for index in range(shape.num_blocks):
        block = f"{flow_net}res_blocks.{index}."
        ours = f"flow.blocks.{index}."
        add(f"{block}in_ln.weight", f"{ours}norm.weight", flow)
        add(f"{block}in_ln.bias", f"{ours}norm.bias", flow)
        add_linear(f"{block}adaLN_modulation.1", f"{ours}modulation", 3 * flow, flow)
        add_linear(f"{block}mlp.0", f"{ours}enter", flow, flow)
        add_linear(f"{block}mlp.2", f"{ours}leave", flow, flow)
    for index in range(NUM_TIMES[shape.flow]):
        time = f"{flow_net}time_embed.{index}."
        ours = f"flow.times.{index}."
        add(f"{time}freqs", f"{ours}frequencies", NUM_FREQUENCIES)
        add(f"{time}mlp.3.alpha", f"{ours}alpha", flow)
        add_linear(f"{time}mlp.0", f"{ours}enter", flow, 2 * NUM_FREQUENCIES)
        add_linear(f"{time}mlp.2", f"{ours}leave", flow, flow)
    return parts


def add_layer(shape: Shape, index: int, add: Callable[..., None]) -> None:
    """Add the tensors of a transformer layer."""
    width = shape.width
    inner = shape.inner
    name = f"transformer.layers.{index}."
    ours = f"model.layers.{index}."
    add(f"{name}self_attn.in_proj.weight", f"{ours}in_proj.weight", shape.attention_width + 2 * shape.kv_width, width)
    add(f"{name}self_attn.out_proj.weight", f"{ours}o_proj.weight", width, shape.attention_width)
    add(f"{name}linear1.weight", f"{ours}up_proj.weight", inner, width)
    add(f"{name}linear2.weight", f"{ours}down_proj.weight", width, inner)
    for norm in ("norm1", "norm2"):
        add(f"{name}{norm}.weight", f"{ours}{norm}.weight", width)
        add(f"{name}{norm}.bias", f"{ours}{norm}.bias", width)


def codec_network(contents: Contents, clones: bool) -> Network:
    """Return the codec with the mean and deviation of latents. It has the encoder if `clones` is True."""
    mimi = dict(entry(contents.config, "mimi"))
    shapes = codec_shapes(PocketConfig.from_record(mimi, clones))
    sides = {name: "flow_lm" if name.startswith("emb_") else "mimi" for name in shapes}
    parts = {f"{sides[name]}.{name}": Part(name, shape) for name, shape in shapes.items()}
    return Network("codec", {"model_type": "pocket", "mimi": mimi, "has_encoder": clones}, parts)


def read_voices(root: Path, shape: Shape, tensors: Mapping[str, Tensor], clones: bool) -> dict[str, Tensor]:
    """Return the rows of the voices in a release folder, float32 [n, H], by name. The first voice is the default."""
    folder = released_folder(root, VOICES)
    first = next((voice for key, voice in FIRST_VOICES.items() if key in root.resolve().name), FIRST_VOICE)
    paths = sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != first, path.stem))
    if not paths and not clones:
        raise CheckpointError(f"{folder}: expected at least one voice, NAME.safetensors, got none")
    backbone = VoiceBackbone(tensors, shape.num_layers, shape.head_dim, shape.kv_heads, shape.theta)
    files = {path: released_file(root, f"{VOICES}/{path.name}") for path in paths}
    voices = {path.stem: recover_rows(backbone, open_tensors(file), path) for path, file in files.items()}
    for name in voices:
        if not re.fullmatch("[a-z0-9_]+", name):
            raise CheckpointError(
                f"{folder}: expected a name of lower-case letters, digits and underscores, got {name!r}"
            )
    return voices
