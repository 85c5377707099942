import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from lab.releases.random_espnet import CONFIG, publish, published_tensors
from stretto.codecs.espnet_dac import SIZES, EspnetDacConfig, load, multiply_weight_norm_out
from stretto.codecs.seanet import Context
from stretto.errors import CheckpointError
from tests.tiers import by_night


def with_generator(**values: object) -> dict:
    config = deepcopy(CONFIG)
    config["codec_conf"]["generator_params"] |= values
    return config


def test_published_opuslm_codec_config_is_parsed() -> None:
    """The config is egs2/amuse/codec1/conf/train_dac_large_v1.4.yaml of https://github.com/espnet/espnet."""
    config = EspnetDacConfig.from_record(
        with_generator(
            hidden_dim=512,
            codebook_dim=512,
            encdec_n_filters=32,
            quantizer_n_q=8,
            quantizer_bins=1024,
            quantizer_target_bandwidth=[0.5, 1, 2, 4],
        )
    )
    assert (config.sample_rate, config.num_codebooks, config.codebook_size) == (16000, 8, 1024)
    assert (config.shape.hop, config.shape.head, config.shape.tail) == (320, Context(3, 3), Context(4, 4))
    assert (config.widths.base, config.widths.latent, config.widths.lstm_layers) == (32, 512, 2)


def test_last_bandwidth_determines_the_number_of_codebooks() -> None:
    assert EspnetDacConfig.from_record(with_generator(quantizer_target_bandwidth=[0.75, 0.5])).num_codebooks == 2


@pytest.mark.parametrize(
    "values",
    [{"encdec_activation": "ELU"}, {"encdec_causal": True}, {"codebook_dim": 8}, {"encdec_norm": "time_group_norm"}],
    ids=str,
)
def test_incompatible_espnet_dac_config_is_refused(tmp_path: Path, values: dict[str, object]) -> None:
    publish(tmp_path, {}, with_generator(**values))
    with pytest.raises(CheckpointError, match=next(iter(values))):
        load(tmp_path)


@pytest.mark.parametrize("value", ["7", 1 << 63, 0, float("nan"), *by_night(None, [7], 30_000_000, -1, 7.0, True)])
@pytest.mark.parametrize("name", SIZES)
def test_size_of_another_type_or_range_is_refused(tmp_path: Path, name: str, value: object) -> None:
    width = {"hidden_dim": value, "codebook_dim": value} if name in ("hidden_dim", "codebook_dim") else {name: value}
    publish(tmp_path, {}, with_generator(**width))
    expected = "expected codebook_dim equal to" if value != value and len(width) == 2 else rf"{min(width, key=len)}: "
    with pytest.raises(CheckpointError, match=rf"config\.yaml: {expected}.*got ") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encdec_ratios": 8}, "encdec_ratios: expected 1 to 8 numbers, got 8"),
        ({"encdec_ratios": []}, "encdec_ratios: expected 1 to 8 numbers, got []"),
        ({"encdec_ratios": [2] * 9}, "encdec_ratios: expected 1 to 8 numbers, got [2, 2"),
        ({"encdec_ratios": [8, 1 << 63]}, "encdec_ratios: expected an integer in [1, 64], got 9223372036854775808"),
        ({"quantizer_target_bandwidth": 2}, "expected a list of numbers in (0, 1000] kbit/s, got 2"),
        ({"quantizer_target_bandwidth": []}, "expected a list of numbers in (0, 1000] kbit/s, got []"),
        ({"quantizer_target_bandwidth": [float("nan")]}, "in (0, 1000] kbit/s, got [nan]"),
        ({"quantizer_target_bandwidth": ["2"]}, "in (0, 1000] kbit/s, got ['2']"),
    ],
)
def test_list_of_other_values_is_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    publish(tmp_path, {}, with_generator(**values))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec_conf": None}, "codec_conf.generator_params is missing"),
        ({"codec_conf": {"sampling_rate": 16000}}, "codec_conf.generator_params is missing"),
        ({"codec_conf": {"sampling_rate": 16000, "generator_params": [1]}}, "expected a mapping, got [1]"),
        ({"codec_conf": {"generator_params": {"codebook_dim": 128}}}, "codec_conf.sampling_rate is missing"),
        (
            {"codec_conf": {"generator_params": {"codebook_dim": 128}, "sampling_rate": 1 << 63}},
            "sampling_rate: expected an integer in [1, 1048576], got 9223372036854775808",
        ),
    ],
)
def test_config_of_another_form_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    publish(tmp_path, {}, {**CONFIG, **change})
    with pytest.raises(CheckpointError, match=rf"config\.yaml: .*{re.escape(message)}"):
        load(tmp_path)


def test_error_names_missing_unknown_and_misshapen_tensors(tmp_path: Path) -> None:
    tensors = published_tensors()
    del tensors["codec.generator.decoder.model.0.conv.conv.bias"]
    tensors["codec.generator.decoder.model.99.alpha"] = torch.ones(1)
    tensors["codec.generator.encoder.model.0.conv.conv.bias"] = torch.ones(7)
    with pytest.raises(CheckpointError) as error:
        load(publish(tmp_path, tensors))
    for name in ("missing: decoder.0.bias", "unknown: decoder.99.alpha", "shape: encoder.0.bias"):
        assert name in str(error.value)


def test_missing_codebook_error_names_the_tensor(tmp_path: Path) -> None:
    tensors = published_tensors()
    del tensors["codec.generator.quantizer.vq.layers.2._codebook.embed"]
    with pytest.raises(CheckpointError, match=r"vq\.layers\.2"):
        load(publish(tmp_path, tensors))


def test_codebooks_of_differing_shapes_are_refused(tmp_path: Path) -> None:
    name = "codec.generator.quantizer.vq.layers.1._codebook.embed"
    with pytest.raises(CheckpointError, match=r"360epoch\.pth: expected codebooks of one shape, got .*layers\.1\."):
        load(publish(tmp_path, published_tensors() | {name: torch.ones(3, 4)}))


@pytest.mark.parametrize("other", [None, torch.ones(1), torch.ones(5, 2, 7)], ids=["none", "another rank", "no parts"])
def test_error_names_an_incomplete_weight_norm(tmp_path: Path, other: torch.Tensor | None) -> None:
    tensors, half = published_tensors(), "codec.generator.decoder.model.0.conv.conv.parametrizations.weight.original0"
    tensors |= {} if other is None else {half: other}
    del tensors[half.replace("original0", "original1") if other is None else "codec.discriminator.unused"]
    with pytest.raises(CheckpointError, match=r"missing: decoder\.0\.weight; unknown: .*weight\.original0"):
        load(publish(tmp_path, tensors))


def test_truncated_weights_file_error_names_the_file(tmp_path: Path) -> None:
    path = publish(tmp_path, published_tensors()) / "360epoch.pth"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(CheckpointError, match=r"360epoch\.pth: expected tensors, got "):
        load(tmp_path)


def test_codec_directory_with_missing_or_extra_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.yaml is missing"):
        load(tmp_path)
    publish(tmp_path, published_tensors())
    (tmp_path / "second.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"second\.pth"):
        load(tmp_path)


def test_codec_in_a_speech_model_checkpoint_is_found(tmp_path: Path) -> None:
    (tmp_path / "codec").mkdir()
    publish(tmp_path / "codec", published_tensors())
    assert load(tmp_path).spec.name == "espnet_dac"


@pytest.mark.parametrize(
    ("magnitude", "direction"),
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
)
def test_multiplied_out_weight_norm_matches_torch(magnitude: str, direction: str) -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(3, 5, 4))
    parts = normed.parametrizations.weight
    plain = multiply_weight_norm_out({f"x.{magnitude}": parts.original0 * 2, f"x.{direction}": parts.original1})
    assert plain.keys() == {"x.weight"}
    assert torch.allclose(plain["x.weight"], normed.weight * 2)


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 1), (1, 1, 1)], ids=str)
def test_norms_of_other_shapes_are_not_treated_as_weight_norm(shape: tuple[int, ...]) -> None:
    """Such tensors keep their names: torch's weight norm without a dimension has a single norm and other weights."""
    pair = {"x.weight_g": torch.ones(shape), "x.weight_v": torch.ones(5, 3, 4)}
    assert multiply_weight_norm_out(pair) == pair


def test_vector_norms_are_not_treated_as_weight_norm() -> None:
    pair = {"x.weight_g": torch.ones(5), "x.weight_v": torch.ones(5)}
    assert multiply_weight_norm_out(pair).keys() == pair.keys()
