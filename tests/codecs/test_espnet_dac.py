"""ESPnet's DAC against a slow reference, and its published config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.releases.random_espnet import CODEBOOKS, CONFIG, SIZE, publish, published_tensors
from stretto.codecs.base import Window
from stretto.codecs.espnet_dac import SIZES, EspnetDac, EspnetDacConfig, load, multiply_weight_norm_out
from stretto.codecs.seanet import Context
from stretto.testing.codec_streams import largest, random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto.testing.releases import REMOVED, edited, set_fields
from tests.codecs.espnet_reference import Reference
from tests.tiers import by_night

GENERATOR = "codec_conf.generator_params"
PREFIX = "codec.generator."
HALF = f"{PREFIX}decoder.model.0.conv.conv.parametrizations.weight.original"
CODEBOOK = f"{PREFIX}quantizer.vq.layers.{{}}._codebook.embed"


def decoded(codec: EspnetDac, codes: Tensor) -> Tensor:
    return Reference(published_tensors(), next(codec.parameters()).dtype).decode(codes).clamp(-1, 1)


def encoded(codec: EspnetDac, pcm: np.ndarray) -> np.ndarray:
    dtype = next(codec.parameters()).dtype
    return (
        Reference(published_tensors(), dtype)
        .encode(torch.from_numpy(pcm).to(dtype))
        .numpy()[: codec.spec.num_codebooks]
    )


def generator(**values: object) -> dict[str, object]:
    return {f"{GENERATOR}.{name}": value for name, value in values.items()}


def halves(other: Tensor | None) -> Callable[[Any], object]:
    """Return an edit that removes the second half of a weight norm, or replaces the first one."""
    if other is None:
        return lambda tensors: tensors.pop(f"{HALF}1")
    return lambda tensors: tensors.update({f"{HALF}0": other})


INCOMPLETE = "missing: decoder.0.weight; unknown: decoder.0.parametrizations.weight.original"


def is_needed(name: str) -> bool:
    return name.startswith(PREFIX) and ("quantizer" not in name or name.endswith("embed"))


class TestEspnetDac(CodecSuite):
    case = CodecCase(
        name="espnet_dac",
        write=lambda folder: publish(folder, published_tensors()),
        spec={
            "sample_rate": 16_000,
            "samples_per_frame": 320,
            "frame_rate": 50.0,
            "num_codebooks": CODEBOOKS,
            "codebook_size": SIZE,
            "left_frames": 7,
            "right_frames": 7,
        },
        decoded=decoded,
        encoded=encoded,
        positions=(10, 25),
        weights="360epoch.pth",
        config="config.yaml",
        unneeded_tensors=[name for name in published_tensors() if not is_needed(name)],
        prefix=PREFIX,
        name_if_missing=lambda name: name.removeprefix(PREFIX).split(".")[0],
        refused_configs=(
            (generator(encdec_activation="ELU"), "encdec_activation"),
            (generator(encdec_causal=True), "encdec_causal"),
            (generator(codebook_dim=8), "codebook_dim"),
            (generator(encdec_norm="time_group_norm"), "encdec_norm"),
            (generator(encdec_ratios=8), "encdec_ratios: expected 1 to 8 numbers, got 8"),
            (generator(encdec_ratios=[]), "encdec_ratios: expected 1 to 8 numbers, got []"),
            (generator(encdec_ratios=[2] * 9), "encdec_ratios: expected 1 to 8 numbers, got [2, 2"),
            (generator(encdec_ratios=[8, 1 << 63]), "expected an integer in [1, 64], got 9223372036854775808"),
            (generator(quantizer_target_bandwidth=2), "expected a list of numbers in (0, 1000] kbit/s, got 2"),
            (generator(quantizer_target_bandwidth=[]), "expected a list of numbers in (0, 1000] kbit/s, got []"),
            (generator(quantizer_target_bandwidth=[float("nan")]), "in (0, 1000] kbit/s, got [nan]"),
            (generator(quantizer_target_bandwidth=["2"]), "in (0, 1000] kbit/s, got ['2']"),
            ({"codec_conf": None}, "codec_conf.generator_params is missing"),
            ({GENERATOR: REMOVED}, "codec_conf.generator_params is missing"),
            ({GENERATOR: [1]}, "expected a mapping, got [1]"),
            ({"codec_conf.sampling_rate": REMOVED}, "codec_conf.sampling_rate is missing"),
            ({"codec_conf.sampling_rate": 1 << 63}, "sampling_rate: expected an integer in [1, 1048576], got 92233"),
        ),
        refused_edits=(
            ("360epoch.pth", lambda tensors: tensors.pop(CODEBOOK.format(2)), "vq.layers.2"),
            (
                "360epoch.pth",
                lambda tensors: tensors.update({CODEBOOK.format(1): torch.ones(3, 4)}),
                "360epoch.pth: expected codebooks of one shape, got ",
            ),
            ("360epoch.pth", halves(None), INCOMPLETE),
            ("360epoch.pth", halves(torch.ones(1)), INCOMPLETE),
            ("360epoch.pth", halves(torch.ones(5, 2, 7)), INCOMPLETE),
        ),
    )

    def test_last_frame_of_the_lookahead_is_needed(self, exact: EspnetDac) -> None:
        codes = random_codes(exact, 1, 40)
        whole = stream(exact, codes, [40])[:, 20 * 320 : 25 * 320]
        _, state = exact.decode(Window(codes[:, :, :27], 0, 7, torch.tensor([0]), exact.initial_state(1)))
        for right, is_exact in ((7, True), (6, False)):
            window = Window(codes[:, :, 13 : 25 + right], 7, right, torch.tensor([20]), state)
            assert (largest(exact.decode(window)[0] - whole) <= 1e-12) == is_exact

    @pytest.mark.parametrize("value", ["7", 1 << 63, 0, float("nan"), *by_night(None, [7], 30_000_000, -1, 7.0, True)])
    def test_size_of_another_type_or_range_is_refused(self, copied: Path, value: object) -> None:
        for name in SIZES:
            equal = ("hidden_dim", "codebook_dim")
            with edited(copied / "config.yaml") as record:
                stored = dict(record["codec_conf"]["generator_params"])
                set_fields(record, generator(**dict.fromkeys(equal if name in equal else (name,), value)))
            expected = "expected codebook_dim equal to" if value != value and name in equal else ": "
            self.assert_refused(copied, "config.yaml: ", expected, "got ")
            with edited(copied / "config.yaml") as record:
                record["codec_conf"]["generator_params"] = stored

    def test_a_folder_with_two_weights_files_is_refused(self, copied: Path) -> None:
        (copied / "second.pth").write_bytes(b"")
        self.assert_refused(copied, "second.pth")

    def test_codec_in_a_speech_model_checkpoint_is_found(self, copied: Path) -> None:
        copied.rename(copied.parent / "codec")
        assert load(copied.parent).spec.name == "espnet_dac"


def config_of(**values: object) -> EspnetDacConfig:
    record = {**CONFIG, "codec_conf": {**CONFIG["codec_conf"]}}
    record["codec_conf"]["generator_params"] = CONFIG["codec_conf"]["generator_params"] | values
    return EspnetDacConfig.from_record(record)


def test_published_opuslm_codec_config_is_parsed() -> None:
    """The config is egs2/amuse/codec1/conf/train_dac_large_v1.4.yaml of https://github.com/espnet/espnet."""
    config = config_of(
        hidden_dim=512,
        codebook_dim=512,
        encdec_n_filters=32,
        quantizer_n_q=8,
        quantizer_bins=1024,
        quantizer_target_bandwidth=[0.5, 1, 2, 4],
    )
    assert (config.sample_rate, config.num_codebooks, config.codebook_size) == (16000, 8, 1024)
    assert (config.shape.hop, config.shape.head, config.shape.tail) == (320, Context(3, 3), Context(4, 4))
    assert (config.widths.base, config.widths.latent, config.widths.lstm_layers) == (32, 512, 2)


def test_last_bandwidth_determines_the_number_of_codebooks() -> None:
    assert config_of(quantizer_target_bandwidth=[0.75, 0.5]).num_codebooks == 2


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


@pytest.mark.parametrize(
    ("norm", "direction"),
    [((5, 3, 4), (5, 3, 4)), ((5, 3, 1), (5, 3, 4)), ((1, 1, 1), (5, 3, 4)), ((5,), (5,))],
    ids=str,
)
def test_norms_of_other_shapes_are_not_treated_as_weight_norm(
    norm: tuple[int, ...], direction: tuple[int, ...]
) -> None:
    """Such tensors keep their names: torch's weight norm without a dimension has a single norm and other weights."""
    pair = {"x.weight_g": torch.ones(norm), "x.weight_v": torch.ones(direction)}
    assert multiply_weight_norm_out(pair) == pair
