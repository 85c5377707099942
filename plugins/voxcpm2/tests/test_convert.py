"""Conversion of VoxCPM2 is strict, folds weight norms, and multiplies muP factors into the weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plugins.voxcpm2.lab.random_voxcpm2 import NUM_TOKENS, config, write_release
from stretto.convert.command import main as convert
from stretto.errors import CheckpointError
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import VOCABULARY, config_at, read_family
from stretto_voxcpm2.family import VoxCpmVocabulary
from tests.refused_conversion import Edit, Refuses, edited

MODEL, CODEC = "model.safetensors", "audiovae.pth"


def words(release: Path, *more: str) -> list[str]:
    return ["voxcpm2", "--model", str(release), "--out", str(release.parent / "out"), *more]


def run(release: Path, out: Path) -> int:
    return convert([*words(release), "--out", str(out)])


def written(checkpoint: Path) -> dict[str, Tensor]:
    (shard,) = checkpoint.glob("model-*.safetensors")
    return load_file(shard)


def test_voxcpm_scales_are_multiplied_into_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release, lm = write_release(tmp_path / "release", "scaled"), config("scaled")["lm_config"]
    assert run(release, tmp_path / "out") == 0
    assert "--dtype" not in capsys.readouterr().out, "other dtypes are refused"
    given, found = load_file(release / MODEL), written(tmp_path / "out")
    known = VoxCpmVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY])
    table = found["model.embed_tokens.weight"]
    assert len(table) == known.vocab_size == NUM_TOKENS + 3
    torch.testing.assert_close(table[:NUM_TOKENS], given["base_lm.embed_tokens.weight"] * lm["scale_emb"])
    assert not table[NUM_TOKENS:].any()
    for own, name, layers in (
        ("model.layers.2.", "base_lm.layers.2.", 3),
        ("model.layers.4.", "residual_lm.layers.1.", 2),
        ("patches.transformer.layers.0.", "feat_encoder.encoder.layers.0.", 2),
        ("head.transformer.layers.1.", "feat_decoder.estimator.decoder.layers.1.", 3),
    ):
        scale = lm["scale_depth"] / math.sqrt(layers)
        for part in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            torch.testing.assert_close(found[f"{own}{part}"], given[f"{name}{part}"] * scale)
        assert found[f"{own}mlp.up_proj.weight"].equal(given[f"{name}mlp.up_proj.weight"])
    rope = config_at(tmp_path / "out")["long_rope"]
    assert rope["factors"] == lm["rope_scaling"]["long_factor"]
    assert rope["scale"] == math.sqrt(1 + math.log(2) / math.log(256))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_text_ids": 104}, "num_text_ids must be above 104"),
        ({"num_latents": 0}, "a patch must have 1 to 4096 words, got 0"),
        ({"num_latents": -4, "num_numbers": -8}, "a patch must have 1 to 4096 words, got 32"),
        ({"num_latents": 1 << 20, "num_numbers": 1 << 20}, "a patch must have 1 to 4096 words"),
    ],
)
def test_implausible_vocabulary_sizes_are_refused(change: dict[str, int], message: str) -> None:
    record = VoxCpmVocabulary().to_record() | change
    with pytest.raises(CheckpointError, match=message):
        read_family({FAMILY: "voxcpm2", VOCABULARY: record})


def test_codec_may_be_a_safetensors_file(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    assert run(release, tmp_path / "one") == 0
    stored = torch.load(release / CODEC)["state_dict"]
    save_file(stored, release / "audiovae.safetensors")
    (release / CODEC).write_bytes(b"not read")
    assert run(release, tmp_path / "other") == 0
    one, other = (load_file(tmp_path / name / "codec" / MODEL) for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    norm = stored["decoder.model.1.weight_v"].flatten(1).norm(dim=1)[:, None, None]
    expected = stored["decoder.model.1.weight_v"] / norm * stored["decoder.model.1.weight_g"]
    torch.testing.assert_close(one["decoder.widen.conv.weight"], expected)
    bias = stored["decoder.sr_cond_model.2.bias_embed.weight"]
    assert one["decoder.blocks.0.offset"].equal(bias[3]), "of 48 kHz"


STOP, GAIN = "stop_head.weight", "decoder.model.1.weight_g"
SPREAD, RATES = "encoder.fc_logvar.bias", "decoder.sr_bin_boundaries"


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (MODEL, lambda t: t.pop(STOP), f"missing: {STOP}"),
        (MODEL, lambda t: t.update({"more": torch.zeros(2)}), "unknown: more"),
        (MODEL, lambda t: t.update({STOP: torch.zeros(3, 48)}), f"wrong shape: {STOP} [3, 48] instead of [2, 48]"),
        (CODEC, lambda t: t.pop(GAIN), f"missing: {GAIN}"),
        (CODEC, lambda t: t.pop(SPREAD), f"missing: {SPREAD}"),
        (CODEC, lambda t: t.update({"more": torch.zeros(2)}), "unknown: more"),
        (CODEC, lambda t: t.update({GAIN: torch.ones(128)}), f"wrong shape: {GAIN} [128] instead of [128, 1, 1]"),
        (CODEC, lambda t: t[RATES].fill_(7), f"{RATES}: expected [20000, 30000, 40000], got [7, 7, 7]"),
        (
            CODEC,
            lambda t: t.update({"more": "text"}),
            "audiovae.pth: expected tensors by name, or under 'module' or 'state_dict'",
        ),
    ],
)
def test_error_names_mismatched_checkpoint_contents(
    tmp_path: Path, refuses: Refuses, file: str, edit: Edit, message: str
) -> None:
    release = write_release(tmp_path / "release")
    with edited(release / file) as stored:
        edit(stored["state_dict"] if file == CODEC else stored)
    refuses(words(release), message)


def changed(record: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    inner = record
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture", "voxcpm", "architecture: expected voxcpm2, got 'voxcpm'"),
        ("dit_config.dit_mean_mode", True, "dit_config.dit_mean_mode: expected false"),
        ("residual_lm_no_rope", False, "expected rotary embeddings in the base model only"),
        ("lm_config.rope_scaling.short_factor", [1.0], "rope_scaling.short_factor: expected 16 numbers, got 1"),
        ("encoder_config.kv_channels", 16, "encoder_config: expected 32 channels per head, got 16"),
        ("lm_config.vocab_size", 150, "expected a tokenizer of at most 150 tokens, got 160"),
        ("audio_vae_config.latent_dim", 16, "audio_vae_config.latent_dim: expected 8, got 16"),
        ("audio_vae_config.use_noise_block", True, "audio_vae_config: expected {'use_noise_block': False}"),
        ("scalar_quantization_scale", None, "scalar_quantization_scale: expected a positive integer, got None"),
        ("max_length", "long", "max_length: expected a positive integer, got 'long'"),
        ("lm_config", [1], "cannot be read as a release of voxcpm2"),
    ],
)
def test_convert_error_names_the_unsupported_config_value(
    tmp_path: Path, refuses: Refuses, path: str, value: object, message: str
) -> None:
    release = write_release(tmp_path / "release")
    (release / "config.json").write_text(json.dumps(changed(config(), path, value)))
    refuses(words(release), message)


def test_incomplete_releases_are_refused(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    expected = "--dtype: expected float32 (latents are fed back in float32), got bfloat16"
    refuses(words(release, "--dtype", "bfloat16"), expected)
    (release / CODEC).unlink()
    refuses(words(release), "expected the codec as audiovae.safetensors or audiovae.pth, got neither")
    (release / "config.json").unlink()
    refuses(words(release), "--config: expected the release's config.json, got none")


def test_symlink_to_an_outside_codec_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    (release / CODEC).rename(tmp_path / CODEC)
    (release / CODEC).symlink_to(tmp_path / CODEC)
    refuses(words(release), f"{CODEC}: expected a file of this release, got a link to")
