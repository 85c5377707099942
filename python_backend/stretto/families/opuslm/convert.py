"""Conversion of OpusLM releases: tensor names, and the vocabulary.

Token ids are looked up by name, because task ids differ between releases. Names follow
espnet2/speechlm/{definitions,core_lm/ar_parallel,module/huggingface}.py in https://github.com/espnet/espnet.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.encoders.xeus import CONFIG, FOLDER, WEIGHTS, Xeus, XeusConfig, read_centres
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.opuslm import family as opuslm
from stretto.families.opuslm.family import NUM_STREAMS, OpusVocabulary
from stretto.family.conversion import Contents, Converted, Release, Tokenizer
from stretto.family.plugin import NAME, VOCABULARY
from stretto.family.sections import NumLayers, Section, Size
from stretto.untrusted_files import entry, optional_entry, released_file, released_folder, yaml_mapping
from stretto.weights.backbones import config_of, shapes
from stretto.weights.loading import (
    Part,
    PendingTensor,
    Plan,
    Progress,
    Written,
    check,
    open_tensors,
    write_file,
    write_json,
)

CHECKPOINTS = ("xeus_checkpoint_new.pth", "xeus_checkpoint_old.pth")
CLUSTERS = "km_opus_lm.mdl"
SSL_DROPPED = ("losses.", "util_modules.", "masker.", "global_step")  # tensors that are needed only for training
OLD_POSITIONS = "encoder.embed.0.conv."
POSITIONS = "encoder.embed.0.convs.0."
CONVOLUTIONS = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)


class FrontEnd(Section):
    """`frontend_conf` of XEUS, with those of ESPnet's defaults that are supported."""

    shapes: list[Annotated[list[Size], Field(min_length=3, max_length=3)]] = Field([*map(list, CONVOLUTIONS)])
    norm_mode: Literal["layer_norm", "group_norm"]
    bias: bool
    normalize_audio: bool = False
    normalize_output: bool = False
    conv_mode: Literal["standard"]
    fs: Literal[16000, "16k"] = 16000
    layer_norm_cls: Literal["transposed", "dim1"] = "transposed"


class Encoder(Section):
    """Section `encoder_conf`. A field has ESPnet's default if that is supported; otherwise the release must have it."""

    output_size: Size = 256
    attention_heads: Size = 4
    num_blocks: NumLayers = 12
    linear_units: Size = 2048
    cgmlp_linear_units: Size = 2048
    cgmlp_conv_kernel: Size = 31
    merge_conv_kernel: Size = 3
    attention_layer_type: Literal["selfattn"]
    pos_enc_layer_type: Literal["conv"]
    input_layer: Literal[None, "none", "wav2vec"]
    use_linear_after_conv: Literal[False] = False
    gate_activation: Literal["identity"] = "identity"
    use_ffn: Literal[True]
    macaron_ffn: Literal[True]
    ffn_activation_type: Literal["swish"] = "swish"
    positionwise_layer_type: Literal["linear"] = "linear"
    qk_norm: Literal[False] = False


class LinearLayer(Section):
    """`preencoder_conf`."""

    output_size: Size


class XeusRelease(Section):
    """config.yaml of a XEUS release."""

    frontend: Literal["wav2vec_cnn"]
    frontend_conf: FrontEnd
    normalize: None = None
    preencoder: Literal["linear"]
    preencoder_conf: LinearLayer
    encoder: Literal["e_branchformer"]
    encoder_conf: Encoder

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        width = self.encoder_conf.output_size
        if self.preencoder_conf.output_size != width:
            expected = f"{width}, the encoder's width"
            raise InvalidRequest("preencoder_conf.output_size", expected, self.preencoder_conf.output_size)
        return self

    @property
    def xeus(self) -> XeusConfig:
        """Hyperparameters of the encoder; raise CheckpointError if they are inconsistent."""
        front_end = self.frontend_conf
        encoder = self.encoder_conf
        try:
            return XeusConfig(
                convolutions=tuple((channels, kernel, stride) for channels, kernel, stride in front_end.shapes),
                hidden=encoder.output_size,
                heads=encoder.attention_heads,
                blocks=encoder.num_blocks,
                feed_forward=encoder.linear_units,
                gate=encoder.cgmlp_linear_units,
                gate_kernel=encoder.cgmlp_conv_kernel,
                merge_kernel=encoder.merge_conv_kernel,
                norm=front_end.norm_mode,
                has_bias=front_end.bias,
                normalizes_audio=front_end.normalize_audio,
                normalizes_output=front_end.normalize_output,
            )
        except ValueError as error:
            raise CheckpointError(f"config.yaml: expected the parameters of XEUS, got {error!r}") from error


@dataclass(frozen=True)
class ConvertedSslTokenizer:
    """Contents of `ssl_tokenizer/` to be written, and the shapes of tensors that only training needs (`dropped`)."""

    record: dict[str, Any]
    entries: list[PendingTensor]
    dropped: dict[str, list[int]]

    @classmethod
    def from_folder(cls, folder: Path, num_codes: int) -> "ConvertedSslTokenizer":
        """Convert the published semantic tokenizer in `folder` or its subfolder `model`, or raise CheckpointError.

        Args:
            num_codes: Number of semantic tokens in the language model's vocabulary.
        """
        folder = released_folder(folder, "model") if (folder / "model").is_dir() else folder
        path = released_file(folder, "config.yaml")
        config = XeusRelease.read(yaml_mapping(path), str(path)).xeus
        published = open_tensors(released_file(folder, _checkpoint(folder).name))
        tensors = multiply_weight_norm_out(
            {name.replace(OLD_POSITIONS, POSITIONS): tensor for name, tensor in published.items()}
        )
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in Xeus(config).state_dict().items()}
        dropped = check({name: Part(f"xeus.{name}", shape) for name, shape in shapes.items()}, tensors, SSL_DROPPED)
        centres = torch.from_numpy(read_centres(released_file(folder, CLUSTERS)))
        if centres.shape != (num_codes, config.hidden):
            raise CheckpointError(
                f"{folder / CLUSTERS}: expected {num_codes} centroids of {config.hidden}, got {list(centres.shape)}"
            )
        entries = [
            PendingTensor(f"xeus.{name}", torch.float32, shape, partial(tensors.__getitem__, name))
            for name, shape in shapes.items()
        ]
        entries.append(PendingTensor("centres", torch.float32, tuple(centres.shape), lambda: centres))
        return cls(config.to_record(), entries, {name: list(tensors[name].shape) for name in dropped})

    def write(self, folder: Path, progress: Progress) -> list[Written]:
        """Write `config.json` and `model.safetensors`."""
        files = [write_json(folder / CONFIG, self.record)]
        files.append(write_file(folder / WEIGHTS, self.entries, progress))
        return [replace(file, name=f"{FOLDER}/{file.name}") for file in files]


def _checkpoint(folder: Path) -> Path:
    """Return the first of CHECKPOINTS that exists, or the only `*.pth` file."""
    paths = sorted(folder.glob("*.pth"))
    named = [folder / name for name in CHECKPOINTS if folder / name in paths]
    if named:
        return named[0]
    if len(paths) != 1:
        raise CheckpointError(f"{folder}: expected {CHECKPOINTS[0]} or one *.pth, got {[path.name for path in paths]}")
    return paths[0]


DROPPED = ("criterion.", "reflm.", "corelm.decoders.lm_head.", "corelm.decoders.model.embed_tokens.")
RENAMED = {"model.embed_tokens.weight": "corelm.emb.weight", "lm_head.weight": "corelm.lm_head.weight"}
HEAD_EMBEDDINGS = "corelm.head_emb.weight"
# Tokens used in the family's prompts; older releases lack names for some of them.
FIXED = {"<pad>": opuslm.PAD, "<sos/eos>": opuslm.SOS_EOS, "<unused_token_255>": opuslm.NEVER_READ}
ROLES = {
    "<system_prompt>": opuslm.SYSTEM_PROMPT,
    "<user_input>": opuslm.USER_INPUT,
    "<assistant_output>": opuslm.ASSISTANT_OUTPUT,
}
REQUIRED_MODALITIES = ("codec_ssl", "text_bpe", "spk")


BACKBONE_TAG = "transformer_conf.hf_model_tag"
EMBEDDINGS = "corelm.emb.weight"
SSL_TOKENIZER = ConvertedSslTokenizer


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written for the base or the dialogue model."""
    if release.keeps_codec:
        raise CheckpointError("--codec: required, because OpusLM's file contains no copy of its codec")
    config = contents.config
    name = release.family_name
    vocab = vocabulary(config, contents.tokenizer, is_dialogue=name == "opuslm_dialogue")
    record = config_of(contents.backbone, vocab.vocab_size, contents.dtype)
    # Length of the training sequences, which differs from the original backbone's.
    record["max_position_embeddings"] = entry(config, "transformer_conf").get("n_ctx", 8192)
    record |= {NAME: name, VOCABULARY: vocab.to_record()}
    return Converted(record, plan(shapes(record), record["hidden_size"], contents.tensors), DROPPED)


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return bfloat16 if config.yaml enables it, otherwise None.

    The dialogue model is stored in float32, but was trained in bfloat16.
    """
    return "bfloat16" if optional_entry(config, "ds_config_dict.bf16.enabled") else None


def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
    """Return a remark on the pad's embedding, and a warning if the release may not belong to `family`.

    The base and dialogue models differ only in their training: the dialogue model is trained on preferences.
    """
    embedding = "zero" if not embeddings[0].any() else "not zero, and a row of text contains it eight times"
    notes = [f"the pad's embedding is {embedding}"]
    model = config.get("model")
    if (model == "dpo") != (family == "opuslm-dialogue"):
        notes.append(f"config.yaml has `model: {model}`, unlike the release of {family}; is this another family?")
    return notes


def vocabulary(config: Mapping[str, Any], tokenizer: Tokenizer, is_dialogue: bool) -> OpusVocabulary:
    """Return the vocabulary that `token_list` and `token_bias` define; raise CheckpointError if they do not fit."""
    names: Sequence[str] = entry(config, "token_list")
    in_use = entry(config, "codec_token_in_use")
    if in_use != NUM_STREAMS:
        raise CheckpointError(f"config.yaml: codec_token_in_use: expected {NUM_STREAMS}, got {in_use}")
    spans = {name: span(config, name) for name in ("ssl", "codec", "text_bpe")}
    codes = len(spans["codec"])
    if codes % (NUM_STREAMS - 1):
        raise CheckpointError(
            f"config.yaml: token_bias.codec: expected a multiple of {NUM_STREAMS - 1} codes, got {codes}"
        )
    if len(spans["text_bpe"]) < tokenizer.size:
        raise CheckpointError(
            f"{tokenizer.folder}: expected the tokenizer {config.get('subword_model')} with at most "
            f"{len(spans['text_bpe'])} tokens, got {tokenizer.size} tokens"
        )
    check_tokens(names[spans["text_bpe"].start : spans["text_bpe"].stop], tokenizer, config.get("subword_model"))
    check_ids(names, FIXED | (ROLES if is_dialogue else {}))
    modalities = named(names, r"<(\w+)_start/end>")
    missing = [name for name in REQUIRED_MODALITIES if name not in modalities]
    if missing:
        raise CheckpointError(f"config.yaml: token_list: missing <{missing[0]}_start/end>")
    return OpusVocabulary(
        vocab_size=len(names),
        text=(spans["text_bpe"].start, spans["text_bpe"].stop),
        ssl=(spans["ssl"].start, spans["ssl"].stop),
        codec=spans["codec"].start,
        codebook_size=codes // (NUM_STREAMS - 1),
        modalities=modalities,
        tasks=named(names, r"<(\w+)_task>"),
    )


def span(config: Mapping[str, Any], name: str) -> range:
    """Return the id range of one type of token, as defined by `token_bias`."""
    span = entry(config, f"token_bias.{name}")
    num_ids = len(entry(config, "token_list"))
    is_pair = isinstance(span, Sequence) and len(span) == 2 and all(type(token_id) is int for token_id in span)
    if not is_pair or not 0 <= span[0] < span[1] <= num_ids:
        raise CheckpointError(f"config.yaml: token_bias.{name}: expected [first, end) of {num_ids} ids, got {span}")
    return range(*span)


def check_tokens(names: Sequence[str], tokenizer: Tokenizer, expected: Any) -> None:
    """Raise CheckpointError if the tokenizer's tokens have different positions in the token list.

    SmolLM and SmolLM2 have the same number of tokens, but in a different order. Tokens that the list spells differently
    are ignored.
    """
    listed = set(names)
    shared = {token_id: token for token_id, token in tokenizer.tokens.items() if token in listed}
    odd = [token_id for token_id, token in shared.items() if names[token_id] != token]
    if len(odd) > len(shared) / 100:
        spelled = tokenizer.tokens[odd[0]]
        there = names[odd[0]]
        raise CheckpointError(
            f"{tokenizer.folder}: expected the tokenizer {expected}; {len(odd)} of {len(shared)} tokens have other ids "
            f"in token_list, which has {there!r} where the tokenizer has {spelled!r}"
        )


def check_ids(names: Sequence[str], expected: Mapping[str, int]) -> None:
    """Raise CheckpointError if a token's id in `token_list` differs from the expected one."""
    for name, token_id in expected.items():
        if names[token_id] != name:
            raise CheckpointError(
                f"config.yaml: token_list: expected {name} at index {token_id}, got {names[token_id]}"
            )


def named(names: Sequence[str], pattern: str) -> dict[str, int]:
    """Map the text that the first group of `pattern` matches to the token id, for each special token that matches."""
    matches = [(re.fullmatch(pattern, name), token_id) for token_id, name in enumerate(names[: opuslm.NEVER_READ])]
    return {match[1]: token_id for match, token_id in matches if match}


def plan(language: Mapping[str, tuple[int, ...]], hidden: int, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of tensors to write, which has only the first NUM_STREAMS rows of the head embeddings."""
    parts = {RENAMED.get(name, f"corelm.decoders.{name}"): Part(name, shape) for name, shape in language.items()}
    stored = tensors[HEAD_EMBEDDINGS].shape if HEAD_EMBEDDINGS in tensors else ()
    rows = max((NUM_STREAMS, *stored[:1]))
    parts[HEAD_EMBEDDINGS] = Part("stream_bias.weight", (rows, hidden), lambda table: table[:NUM_STREAMS])
    return parts
