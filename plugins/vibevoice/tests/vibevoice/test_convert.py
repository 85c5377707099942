"""Conversion of VibeVoice is strict, keeps four rows of an untied head, and stores the decoder for codec and model."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plugins.vibevoice.tests.vibevoice_release import (
    BEGIN,
    END,
    END_OF_REPLY,
    FRAME,
    NUM_IDS,
    OFFSET,
    SCALE,
    changed_config,
    write_release,
)
from stretto.convert.command import main as convert
from stretto.errors import CheckpointError
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import VOCABULARY, config_at, read_family
from stretto.testing.releases import Edit, edited
from stretto_vibevoice.codec import Decoder, TokenizerConfig, published_name
from stretto_vibevoice.vibevoice.convert import authors_name
from stretto_vibevoice.vibevoice.family import VibeVoiceVocabulary
from tests.refused_conversion import Refuses

MODEL = "model.safetensors"
FACTOR, STEM = "model.latent_scaling_factor", "model.audio_tower.decoder.stem.conv.conv.weight"


def words(release: Path, out: Path, *more: str) -> list[str]:
    files = ("--model", str(release), "--config", str(release / "config.json"))
    return ["vibevoice", *files, "--out", str(out), *more]


def run(release: Path, out: Path) -> int:
    return convert(words(release, out))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("vibevoice") / "release")


def copy_of(release: Path, folder: Path) -> Path:
    """Return a copy of a release whose files may be changed."""
    folder.mkdir()
    for path in release.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def written(checkpoint: Path) -> dict[str, Tensor]:
    (shard,) = checkpoint.glob("model-*.safetensors")
    return load_file(shard)


def test_converted_tensors_match_the_release(release: Path, tmp_path: Path) -> None:
    assert run(release, tmp_path / "out") == 0
    given, found, codec = (
        load_file(release / MODEL),
        written(tmp_path / "out"),
        load_file(tmp_path / "out/codec" / MODEL),
    )
    table = found["model.embed_tokens.weight"]
    assert table[:NUM_IDS].equal(given["model.language_model.embed_tokens.weight"])
    assert len(table) == NUM_IDS + 1
    assert not table[NUM_IDS:].any()
    assert "audio_head.weight" not in found, "rows of the table are the head"
    for own, name in (
        ("acoustic_connector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("semantic_connector.act.weight", "model.semantic_connector.act.weight"),
        ("head.timestep_proj.fc1.weight", "model.diffusion_head.timestep_proj.fc1.weight"),
        (
            "feedback.decoder.conv_layers.1.conv.conv.weight",
            "model.audio_tower.decoder.conv_layers.1.convtr.convtr.weight",
        ),
        (
            "feedback.encoder.conv_layers.1.conv.conv.bias",
            "model.semantic_tokenizer_encoder.conv_layers.1.conv.conv.bias",
        ),
    ):
        assert found[own].equal(given[name]), own
    assert codec["decoder.stem.conv.conv.weight"].equal(given[STEM])
    assert found["feedback.decoder.stem.conv.conv.weight"].equal(given[STEM])
    record = json.loads((tmp_path / "out/codec/config.json").read_text())
    for numbers in (record, config_at(tmp_path / "out")["tokenizers"]):
        assert numbers["latent_scaling_factor"] == pytest.approx(SCALE)
        assert numbers["latent_bias_factor"] == pytest.approx(OFFSET)


def test_duplicate_tied_head_is_omitted(release: Path, tmp_path: Path) -> None:
    release = copy_of(release, tmp_path / "release")
    with edited(release / MODEL) as tensors:
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    assert run(release, tmp_path / "out") == 0
    assert not {"audio_head.weight", "lm_head.weight"} & set(written(tmp_path / "out"))


def test_untied_head_keeps_four_rows(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "untied")
    assert run(release, tmp_path / "out") == 0
    rows = load_file(release / MODEL)["lm_head.weight"][[BEGIN, END, FRAME, END_OF_REPLY]]
    assert written(tmp_path / "out")["audio_head.weight"].equal(rows)
    assert not config_at(tmp_path / "out")[VOCABULARY]["is_tied"]


# Names of the authors' checkpoints as transformers' own converter reads them; `-` is one less than the number.
PUBLISHED_NAMES = (
    (r"(semantic|acoustic)_tokenizer\.encoder\.downsample_layers\.0\.0\.conv\.", r"\1_encoder.stem.conv."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.stages\.0\.", r"\1_encoder.stem.stage."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.downsample_layers\.(\d+)\.0\.conv\.", r"\1_encoder.conv_layers.-.conv."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.stages\.(\d+)\.", r"\1_encoder.conv_layers.-.stage."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.head\.conv\.", r"\1_encoder.head."),
    (r"acoustic_tokenizer\.decoder\.upsample_layers\.0\.0\.conv\.conv\.", r"audio_tower.decoder.stem.conv.conv."),
    (r"acoustic_tokenizer\.decoder\.stages\.0\.", r"audio_tower.decoder.stem.stage."),
    (r"()acoustic_tokenizer\.decoder\.upsample_layers\.(\d+)\.0\.", r"audio_tower.decoder.conv_layers.-."),
    (r"()acoustic_tokenizer\.decoder\.stages\.(\d+)\.", r"audio_tower.decoder.conv_layers.-.stage."),
    (r"acoustic_tokenizer\.decoder\.head\.conv\.", r"audio_tower.decoder.head."),
    (r"semantic_encoder\.", "semantic_tokenizer_encoder."),
    (r"acoustic_encoder\.", "audio_tower.encoder."),
    (r"mixer\.conv\.conv\.conv\.", "mixer.conv."),
    (r"prediction_head\.t_embedder\.mlp\.0\.", "diffusion_head.timestep_proj.fc1."),
    (r"prediction_head\.t_embedder\.mlp\.2\.", "diffusion_head.timestep_proj.fc2."),
    (r"prediction_head\.layers\.(\d+)\.adaLN_modulation\.1\.", r"diffusion_head.layers.\1.linear."),
    (r"prediction_head\.final_layer\.adaLN_modulation\.1\.", "diffusion_head.final_layer.linear_1."),
    (r"prediction_head\.final_layer\.linear\.", "diffusion_head.final_layer.linear_2."),
    (r"prediction_head\.", "diffusion_head."),
    (r"acoustic_connector\.", "multi_modal_projector."),
    (r"(multi_modal_projector|semantic_connector)\.fc([12])\.", r"\1.linear_\2."),
    (r"(multi_modal_projector|semantic_connector)\.norm\.", r"\1.act."),
    (r"speech_(scaling|bias)_factor", r"latent_\1_factor"),
)


def published_name_of(name: str) -> str:
    for pattern, made in PUBLISHED_NAMES:
        found = re.search(pattern, name)
        if found is not None:
            made = made.replace("-", str(int(found[2]) - 1)) if "-" in made else made
            name = name[: found.start()] + found.expand(made) + name[found.end() :]
    return name


def authors_release(folder: Path, kind: str = "tied") -> Path:
    """Write a release in the authors' layout, including its tokenizer, and return its folder."""
    release = write_release(folder, kind)
    with edited(release / MODEL) as tensors:
        renamed = {authors_name(name): tensor for name, tensor in tensors.items()}
        assert {published_name_of(name) for name in renamed} == set(tensors)
        assert len(renamed) == len(tensors)
        tensors.clear()
        tensors.update(renamed)
    record = json.loads((release / "config.json").read_text())

    def network(section: str, size: int, **more: Any) -> dict[str, Any]:
        found = record[section]
        ratios, filters = found["downsampling_ratios"][::-1], found["num_filters"]
        own = {"vae_dim": size, "encoder_ratios": ratios, "encoder_n_filters": filters, "causal": True}
        depths = "-".join(map(str, found["depths"]))
        decoder = {"decoder_ratios": ratios, "decoder_n_filters": filters, "decoder_depths": None}
        return {**own, **decoder, "channels": 1, "layernorm_eps": 1e-5, "encoder_depths": depths, **more}

    head = record["diffusion_head_config"]
    made = {
        "model_type": "vibevoice",
        "decoder_config": record["text_config"] | {"tie_word_embeddings": kind != "untied"},
        "acoustic_tokenizer_config": network("audio_config", 8, fix_std=0.4, std_dist_type="gaussian"),
        "semantic_tokenizer_config": network("semantic_model_config", 12, fix_std=0, std_dist_type="none"),
        "diffusion_head_config": {
            "hidden_size": head["hidden_size"],
            "latent_size": head["latent_size"],
            "rms_norm_eps": 1e-5,
            "head_layers": head["num_hidden_layers"],
            "head_ffn_ratio": 3.0,
            "prediction_type": "v_prediction",
            "ddpm_beta_schedule": "cosine",
            "ddpm_num_steps": 1000,
        },
    }
    (release / "config.json").write_text(json.dumps(made))
    return release


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_authors_layout_converts_to_the_same_checkpoint(tmp_path: Path, kind: str) -> None:
    assert run(write_release(tmp_path / "release", kind), tmp_path / "out") == 0
    assert run(authors_release(tmp_path / "authors", kind), tmp_path / "same") == 0
    first, second = written(tmp_path / "out"), written(tmp_path / "same")
    assert set(first) == set(second)
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    assert config_at(tmp_path / "out") | {"tokenizers": 0} == config_at(tmp_path / "same") | {"tokenizers": 0}
    names = ("acoustic", "semantic")
    one, other = (
        [TokenizerConfig.from_record(config_at(tmp_path / each)["tokenizers"][name]) for name in names]
        for each in ("out", "same")
    )
    assert one[0] == other[0]
    assert replace(one[1], deviation=0.0) == other[1], "the semantic tokenizer adds no noise"
    codecs = [load_file(tmp_path / each / "codec" / MODEL) for each in ("out", "same")]
    assert all(tensor.equal(codecs[1][name]) for name, tensor in codecs[0].items())


def test_tensor_names_match_the_authors_checkpoint() -> None:
    """Names and shapes equal those of the published 1.5B checkpoint, whose decoder has 276 tensors."""
    with torch.device("meta"):
        shapes = {
            authors_name(f"model.audio_tower.{published_name(f'decoder.{name}')}"): list(tensor.shape)
            for name, tensor in Decoder(TokenizerConfig.from_record({})).state_dict().items()
        }
    assert len(shapes) == 276
    for name, shape in (
        ("upsample_layers.0.0.conv.conv.weight", [2048, 64, 7]),
        ("upsample_layers.1.0.convtr.convtr.weight", [2048, 1024, 16]),
        ("upsample_layers.6.0.convtr.convtr.weight", [64, 32, 4]),
        ("head.conv.conv.weight", [1, 32, 7]),
        ("stages.0.0.mixer.conv.conv.conv.weight", [2048, 1, 7]),
        ("stages.5.2.ffn.linear1.weight", [256, 64]),
    ):
        assert shapes[f"model.acoustic_tokenizer.decoder.{name}"] == shape, name


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("acoustic_tokenizer_config", {"causal": False}, "acoustic_tokenizer_config.causal: expected True, got False"),
        ("acoustic_tokenizer_config", {"decoder_ratios": [2]}, "acoustic_tokenizer_config.decoder_ratios: expected ["),
        ("semantic_tokenizer_config", {"layernorm": "LN"}, "semantic_tokenizer_config.layernorm: expected 'RMSNorm'"),
        ("semantic_tokenizer_config", {"encoder_depths": "3-x"}, "downsampling_ratios and depths must be lists, got"),
        ("diffusion_head_config", {"prediction_type": "epsilon"}, "prediction_type: expected 'v_prediction', got 'eps"),
        ("diffusion_head_config", {"head_ffn_ratio": "3"}, "expected hidden_size and head_ffn_ratio, got [128, '3']"),
        ("diffusion_head_config", {"head_ffn_ratio": float("inf")}, "diffusion_head_config.head_ffn_ratio: expected a"),
        ("diffusion_head_config", {"head_ffn_ratio": float("nan")}, "diffusion_head_config.head_ffn_ratio: expected a"),
        ("diffusion_head_config", {"head_ffn_ratio": 1e308}, "diffusion_head_config.head_ffn_ratio: expected a number"),
        ("diffusion_head_config", {"head_layers": 0}, "diffusion_head_config: expected sizes, got"),
    ],
)
def test_unsupported_vibevoice_config_field_is_named(
    tmp_path: Path, refuses: Refuses, section: str, change: dict[str, Any], message: str
) -> None:
    release = authors_release(tmp_path / "release")
    record = json.loads((release / "config.json").read_text())
    record[section] |= change
    (release / "config.json").write_text(json.dumps(record))
    refuses(words(release, tmp_path / "out"), message)


def test_authors_layout_requires_the_qwen_tokenizer(tmp_path: Path, refuses: Refuses) -> None:
    release = authors_release(tmp_path / "release")
    path = release / "tokenizer.json"
    path.write_text(path.read_text().replace("<|vision_pad|>", "<|other|>"))
    refuses(words(release, tmp_path / "out"), "expected the tokenizer of Qwen2.5, got none of ['<|vision_pad|>']")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(STEM), f"missing: {STEM}"),
        (lambda t: t.update(more=torch.zeros(2)), "unknown: more"),
        (lambda t: t.update({STEM: torch.zeros(2, 2)}), f"wrong shape: {STEM} [2, 2] instead of [32, 8, 7]"),
        (lambda t: t.pop(FACTOR), f"{FACTOR}: expected a finite number, not 0 if it is a factor, got nothing"),
        (lambda t: t[FACTOR].fill_(float("nan")), f"{FACTOR}: expected a finite number, not 0 if it is a factor, got"),
        (lambda t: t.update({FACTOR: torch.tensor(1e300, dtype=torch.float64)}), f"{FACTOR}: expected a finite number"),
        (lambda t: t.update({FACTOR: torch.tensor(1j)}), f"{FACTOR}: expected a finite number"),
        (lambda t: t[FACTOR].fill_(0), f"{FACTOR}: expected a finite number"),
    ],
)
def test_error_names_mismatched_checkpoint_contents(
    release: Path, tmp_path: Path, refuses: Refuses, edit: Edit, message: str
) -> None:
    release = copy_of(release, tmp_path / "release")
    with edited(release / MODEL) as tensors:
        edit(tensors)
    refuses(words(release, tmp_path / "out"), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "vibevoice_streaming"},
            "expected VibeVoice 1.5B or 7B, got VibeVoice Realtime 0.5B: convert vibevoice-realtime",
        ),
        ({"tts_backbone_num_hidden_layers": 20}, "expected VibeVoice 1.5B or 7B, got VibeVoice Realtime 0.5B"),
        ({"model_type": "qwen2"}, "model_type: expected 'vibevoice', got 'qwen2'"),
        ({"audio_config": {"channels": 2}}, "audio_config.channels: expected 1, got 2"),
        ({"semantic_model_config": {"downsampling_ratios": [2, 2], "depths": [1, 1, 1]}}, "expected 3200 samples, got"),
        ({"diffusion_head_config": {"hidden_size": 64, "latent_size": 8}}, "diffusion_head_config: expected {'hidden"),
        (
            {"diffusion_head_config": {"hidden_act": "relu"}},
            "expected {'hidden_act': 'silu'}, got {'hidden_act': 'relu'}",
        ),
        ({"audio_token_id": 9999}, "begin, end, frame and end_of_reply must differ and be below 264"),
        ({"audio_token_id": "x"}, "speech_vocabulary.frame: expected a valid integer, got 'x'"),
        ({"text_config": {"num_attention_heads": 0}}, "to be a multiple of num_attention_heads, got 4096 and 0"),
        ({"audio_token_id": BEGIN}, "begin, end, frame and end_of_reply must differ"),
        ({"audio_config": [1]}, "cannot be read as a release of vibevoice"),
        ({"text_config": None}, "text_config is missing"),
        (
            {"text_config": {"num_hidden_layers": 1 << 40}},
            "num_hidden_layers: expected at most 1024 layers, got",
        ),
        ({"text_config": {"hidden_size": "wide"}}, "invalid parameters for qwen2"),
    ],
)
def test_convert_error_names_the_unsupported_config_value(
    release: Path, tmp_path: Path, refuses: Refuses, change: dict[str, Any], message: str
) -> None:
    release = copy_of(release, tmp_path / "release")
    changed_config(release, **change)
    refuses(words(release, tmp_path / "out"), message)


def test_unsupported_dtypes_are_refused(release: Path, tmp_path: Path, refuses: Refuses) -> None:
    expected = "--dtype: expected float32 (latents are fed back in float32), got bfloat16"
    refuses(words(release, tmp_path / "out", "--dtype", "bfloat16"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_text_ids": 151654}, "must differ and be below 151654"),
        ({"num_text_ids": 1 << 30}, "expected numbers of at most 1048576"),
        ({"end": 151652}, "must differ and be below 151936"),
        ({"begin": -1}, "must differ and be below 151936"),
        ({"num_numbers": 0}, r"num_numbers must be in \[1, 4096\], got 0"),
        ({"num_features": 1 << 20}, r"num_features must be in \[1, 4096\]"),
    ],
)
def test_implausible_vocabulary_sizes_are_refused(change: dict[str, int], message: str) -> None:
    record = VibeVoiceVocabulary().to_record() | change
    with pytest.raises(CheckpointError, match=message):
        read_family({FAMILY: "vibevoice", VOCABULARY: record})
