"""Conversion of the Higgs Audio v2 release in transformers format (`model_type` higgs_audio_v2).

The release is https://huggingface.co/bosonai/higgs-audio-v2-generation-3B-base. Files with the same weights in Boson's
original format are detected by their different names, and rejected. The codec is a separate release,
bosonai/higgs-audio-v2-tokenizer, either in transformers format or in Boson AI's (`model.pth`, `config.json`), which is
converted to the former. Boson's names follow boson_multimodal/audio_processing/higgs_audio_tokenizer.py in
https://github.com/boson-ai/higgs-audio. The folder may contain a `config.json` in transformers format next to Boson's
weights, and a `model.safetensors` of another model.
"""

from collections.abc import Mapping
from math import ceil, log2, prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration, HiggsAudioV2TokenizerConfig

from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.errors import CheckpointError
from stretto.family.conversion import (
    AUDIO,
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    concatenated,
    unchanged,
)
from stretto.untrusted_files import UNPARSABLE, json_object, released_file
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, check_plain_layers, read_numbers
from stretto.weights.loading import CONFIG_FILE, Part, Plan, check, read_tensors, shapes_of
from stretto.weights.pretrained import load_config
from stretto_higgs_audio.codec import HiggsModel
from stretto_higgs_audio.higgs_audio.family import NEEDED, NUM_MARKS, SCENE_END, SCENE_START, HiggsAudioVocabulary

WEIGHTS = "model.pth"
OTHERS = "model.safetensors"
OURS = "acoustic_decoder.conv1.weight"  # exists in the codec in transformers format, and in no language model
RESIDUAL = ("snake1", "conv1", "snake2", "conv2")  # layers of a residual unit; each block has three units
# Modules of a block outside its residual units, by index, and the index of the first unit.
ENCODER_BLOCK = ({3: "snake1", 4: "conv1"}, 0)
DECODER_BLOCK = ({0: "snake1", 1: "conv_t1"}, 2)
PROJECTIONS = {"fc_prior": "fc", "fc_post1": "fc1", "fc_post2": "fc2"}
UNUSED = "fc1."  # unused layer in Boson's class; not `fc1` in transformers
SEMANTIC_SAMPLE_RATE = 16_000


def boson_codec(folder: Path, num_codebooks: int, codebook_size: int) -> Network | None:
    """Return the codec in Boson's `model.pth`, or None if `folder` has none or is in transformers format."""
    path = folder / WEIGHTS
    if not path.exists() or OURS in _names(folder / OTHERS):
        return None
    config = read_codec_config(folder)
    sizes = (config.num_quantizers, config.codebook_size)
    if sizes != (num_codebooks, codebook_size):
        expected = f"{num_codebooks} codebooks of {codebook_size} codes"
        raise CheckpointError(f"{folder / CONFIG_FILE}: expected {expected}, got {sizes[0]} of {sizes[1]}")
    stored = read_tensors(released_file(folder, WEIGHTS))
    try:
        shapes = shapes_of(HiggsModel, config)
    except (*UNPARSABLE, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: invalid codec parameters: {error!r}") from error
    tensors = renamed(stored, len(config.acoustic_model_config.upsampling_ratios))
    plan = unchanged(shapes)
    try:
        check(plan, tensors, ("semantic_model.masked_spec_embed",))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    record = {**config.to_dict(), "architectures": ["HiggsAudioV2TokenizerModel"]}
    return Network("codec", record, plan, tensors)


def read_codec_config(folder: Path) -> Any:
    """Return the codec's HiggsAudioV2TokenizerConfig from a `config.json` in either format."""
    record = json_object(folder / CONFIG_FILE)
    if "model_type" in record:
        return load_config(HiggsAudioV2TokenizerConfig, folder)
    try:
        ratios = [int(ratio) for ratio in record["ratios"]]
        rate = int(record["sample_rate"])
        num_bits = ceil(log2(record["bins"]))
        bandwidth = record["n_q"] * ceil(rate / prod(ratios)) * num_bits / 1000  # determines the number of codebooks
        acoustic = {"hidden_size": record["D"], "downsampling_ratios": ratios, "upsampling_ratios": ratios}
        return HiggsAudioV2TokenizerConfig.from_dict(
            {
                "sample_rate": rate,
                "codebook_size": record["bins"],
                "codebook_dim": record["codebook_dim"],
                "target_bandwidths": [bandwidth],
                "semantic_sample_rate": record.get("semantic_sample_rate") or SEMANTIC_SAMPLE_RATE,
                "acoustic_model_config": {"encoder_hidden_size": 64, "decoder_hidden_size": 1024, **acoustic},
            }
        )
    except UNPARSABLE as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: invalid parameters for Higgs Audio's codec: {error!r}"
        ) from error


def renamed(stored: Mapping[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """Rename Boson's tensors as in transformers, and multiply out weight norms that it does not use."""
    stems = _stems(num_blocks)
    normed = dict[str, Tensor]()
    plain = dict[str, Tensor]()
    for name, tensor in stored.items():
        if name.startswith("semantic_model."):
            for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
                name = name.replace(f".conv.{old}", f".conv.parametrizations.weight.{new}")
            plain[name] = tensor
        elif not name.startswith(UNUSED):
            normed[name] = tensor
    for name, tensor in multiply_weight_norm_out(normed).items():
        stem, _, last = name.rpartition(".")
        plain[f"{stems.get(stem) or _others(stem)}.{last}"] = tensor
    return plain


def _stems(num_blocks: int) -> dict[str, str]:
    """Map Boson's module names in the acoustic encoder and decoder to those in transformers."""
    stems = dict(PROJECTIONS)
    for old, new, (alone, first) in (
        ("encoder.block", "acoustic_encoder", ENCODER_BLOCK),
        ("decoder_2.model", "acoustic_decoder", DECODER_BLOCK),
    ):
        for index, name in ((0, "conv1"), (num_blocks + 1, "snake1"), (num_blocks + 2, "conv2")):
            stems[f"{old}.{index}"] = f"{new}.{name}"
        for block in range(num_blocks):
            inside = f"{old}.{block + 1}.block"
            outside = f"{new}.block.{block}"
            stems |= {f"{inside}.{index}": f"{outside}.{name}" for index, name in alone.items()}
            for unit in range(3):
                for index, name in enumerate(RESIDUAL):
                    stems[f"{inside}.{first + unit}.block.{index}"] = f"{outside}.res_unit{unit + 1}.{name}"
    return stems


def _others(stem: str) -> str:
    """Return transformers' name of a module in the quantiser, or in the semantic encoder or decoder."""
    if stem.startswith("quantizer.vq.layers."):
        return stem.replace("quantizer.vq.layers.", "quantizer.quantizers.").replace("._codebook", ".codebook")
    words = stem.split(".")
    is_wrapped = len(words) > 1 and words[-1] == "conv" and words[-2] in ("conv", "conv1", "conv2")
    return ".".join(words[:-1] if is_wrapped else words)


def _names(path: Path) -> set[str]:
    """Return the tensor names in a safetensors file, or an empty set if the file does not exist."""
    if not path.exists():
        return set()
    try:
        with safe_open(released_file(path.parent, path.name), framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error


GENERATION = AUDIO | {"ras_win_len": ("ras_window",), "ras_win_max_num_repeat": ("ras_max_repeats",)}
EMBEDDINGS = "model.embed_tokens.weight"
CODES = "model.embed_audio_tokens.embed_audio_tokens.weight"
HEADS = "audio_lm_head.weight"
# A text head used only in training, and duplicate tensors under the names of Boson's own files.
DROPPED = ("text_lm_head.", "audio_decoder_proj.")
BOSONS = "audio_codebook_embeddings.weight"  # https://github.com/boson-ai/higgs-audio, modeling_higgs_audio.py
MARKS = {BOSONS: "Higgs Audio's language model in Boson AI's format"}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint: the code embeddings appended to the text table, and heads for codes only."""
    if BOSONS in contents.tensors:
        raise CheckpointError(f"{release.model}: expected transformers format, got Boson AI's format (tensor {BOSONS})")
    config = read_config(contents.config)
    vocab = vocabulary(config, contents.tokenizer)
    record = {
        "architectures": ["StrettoHiggsAudioForCausalLM"],
        "model_type": "llama",
        **{name: getattr(config, name) for name in LLAMA_NUMBERS},
        **common_record("higgs_audio_v2", vocab, vocab.layout.vocab_size, contents),
    }
    folder = release.codec
    codec = None if folder is None else boson_codec(folder, vocab.num_codebooks, vocab.codebook_size)
    networks = () if codec is None else (codec,)
    return Converted(record, plan(config), DROPPED, networks=networks)


def read_config(record: Mapping[str, Any]) -> Any:
    """Parse config.json as a HiggsAudioV2Config."""
    config = read_numbers(HiggsAudioV2Config, record)
    check_heads(config)
    check_plain_layers(config)
    num_codes = config.codebook_size - NUM_MARKS
    marks = (config.audio_stream_bos_id, config.audio_stream_eos_id)
    if marks != (num_codes, num_codes + 1):
        expected = f"audio_stream_bos_id and audio_stream_eos_id {num_codes} and {num_codes + 1}, the last two ids"
        raise CheckpointError(f"config.json: expected {expected}, got {marks[0]} and {marks[1]}")
    if not isinstance(config.eos_token_id, int) or not isinstance(config.pad_token_id, int):
        got = f"{config.eos_token_id} and {config.pad_token_id}"
        raise CheckpointError(f"config.json: expected integers as eos_token_id and pad_token_id, got {got}")
    return config


def vocabulary(config: Any, tokenizer: Tokenizer) -> HiggsAudioVocabulary:
    """Return the vocabulary: tokenizer ids, followed by the ids of the codebooks."""
    ids = tokenizer.ids_of(NEEDED, config.vocab_size)
    return HiggsAudioVocabulary(
        num_text_ids=config.vocab_size,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size - NUM_MARKS,
        pad=config.pad_token_id,
        end_of_reply=config.eos_token_id,
        markers={name: ids[name] for name in (*NEEDED, SCENE_START, SCENE_END) if name in ids},
        max_model_len=config.max_position_embeddings,
    )


def plan(config: Any) -> Plan:
    """Return the plan of tensors to write. Layers keep their names."""
    shapes = shapes_of(HiggsAudioV2ForConditionalGeneration, config)
    parts = {name: Part(name, shape) for name, shape in shapes.items() if name.startswith("model.")}
    codes = {CODES: parts.pop(CODES).stored}
    parts[EMBEDDINGS] = Part(EMBEDDINGS, shapes[EMBEDDINGS], concatenated, others=codes)
    parts[HEADS] = Part("audio_head.weight", shapes[HEADS])
    return parts
