"""XEUS features against a float64 reference that computes one frame at a time."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.encoders.xeus import Xeus, XeusConfig
from stretto.families.opuslm.convert import SSL_DROPPED, XeusRelease
from tests import published_xeus
from tests.reference import xeus as reference

XEUS = XeusConfig(
    convolutions=((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2),
    hidden=1024,
    heads=8,
    blocks=19,
    feed_forward=4096,
    gate=4096,
    gate_kernel=31,
    merge_kernel=31,
)


def config_with(**front_end: Any) -> dict[str, Any]:
    """Return the small release's config.yaml with other front-end settings."""
    config = copy.deepcopy(published_xeus.CONFIG)
    config["frontend_conf"] |= front_end
    return config


@pytest.mark.parametrize(
    "front_end",
    [{}, {"norm_mode": "group_norm", "bias": False}, {"normalize_audio": False}, {"normalize_output": True}],
    ids=["as published", "group norm", "as loud as it comes", "normed output"],
)
def test_xeus_features_match_the_reference(front_end: dict[str, Any]) -> None:
    config = config_with(**front_end)
    published = published_xeus.published_tensors(1, config)
    tensors = {
        name: tensor for name, tensor in multiply_weight_norm_out(published).items() if not name.startswith(SSL_DROPPED)
    }
    xeus = Xeus(XeusRelease.read(config).xeus).eval()
    xeus.load_state_dict(tensors)
    pcm = 0.3 * np.random.default_rng(2).standard_normal(6000).astype(np.float32)
    with torch.inference_mode():
        heard = xeus(torch.from_numpy(pcm)).numpy()
    expected = reference.features(pcm, published, config)
    assert heard.shape == expected.shape == (18, published_xeus.HIDDEN)
    assert np.abs(heard - expected).max() < 5e-4
    assert expected.std(0).min() > 0.1, "frames differ from each other"


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(0, 0), (399, 0), (400, 1), (719, 1), (720, 2), (480_000, 1499)]
)
def test_xeus_frames_are_400_samples_with_hop_320(num_samples: int, num_frames: int) -> None:
    assert XEUS.num_frames(num_samples) == num_frames


def test_published_xeus_size_is_574_million_parameters() -> None:
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in Xeus(XEUS).parameters())
    assert round(numbers / 1e6) == 574, "the rest, some 3 million, are what it was trained with"


def test_xeus_config_round_trips_through_its_record() -> None:
    assert XeusConfig.from_record(XEUS.to_record()) == XEUS
