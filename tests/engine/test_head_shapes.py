"""Replies of small models of each built-in family with one key head, and with three heads in layers of odd sizes.

VITA-Audio has one key head in its recorded replies. The plug-ins' tests contain such cases of their families.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest

from lab.releases import random_espnet, random_qwen3_tts
from tests import published_checkpoints, published_csm
from tests.engine.head_shapes import SHAPES, Shape, Write, assert_replies_match_reference, converted
from tests.tiers import by_night

pytestmark = pytest.mark.engine


def qwen3_tts(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer has the same numbers of heads."""
    config = random_qwen3_tts.small_config(hidden=shape.width, depth_hidden=56)
    for part in (config["talker_config"], config["talker_config"]["code_predictor_config"]):
        part.update(shape.heads)
    release = random_qwen3_tts.write_release(folder / "release", config)
    words = ["qwen3-tts", "--model", str(release), "--config", f"{release}/config.json"]
    return converted([*words, "--tokenizer", str(release)], folder)


def csm(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth decoder has the same numbers of heads."""
    width = shape.whole_width
    depth = (
        published_csm.CONFIG["depth_decoder_config"] | shape.heads | {"backbone_hidden_size": width, "hidden_size": 48}
    )
    sizes = shape.heads | {"hidden_size": width, "depth_decoder_config": depth}
    patch.setattr(published_csm, "CONFIG", published_csm.CONFIG | sizes)
    return published_csm.convert(folder, published_csm.make_model())[0]


def espnet(family: str, backbone: str, seed: int = 0) -> Write:
    """Return the writer of an ESPnet release."""

    def write(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
        width = shape.width if backbone == "qwen3" else shape.whole_width
        config_of = random_espnet.backbone_config

        def config(*arguments: Any) -> Any:
            found = config_of(*arguments)
            found.update(shape.numbers(width))
            return found

        patch.setattr(random_espnet, "backbone_config", config)
        return published_checkpoints.convert(
            family, published_checkpoints.write_release(family, folder, seed), folder / "checkpoint"
        )

    return write


WRITERS: dict[str, Write] = {
    "qwen3_tts": qwen3_tts,
    "csm": csm,
    "bagpiper": espnet("bagpiper", "qwen3"),
    "opuslm": espnet("opuslm", "olmo2", seed=1),
    "opuslm_dialogue": espnet("opuslm-dialogue", "llama"),
}
BY_DAY = [("csm", "one key head")]


@pytest.mark.parametrize(
    ("name", "shape"),
    [*BY_DAY, *by_night(*(case for case in itertools.product(WRITERS, SHAPES) if case not in BY_DAY))],
)
def test_replies_match_the_reference_alone_and_batched(
    name: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replies_match_reference(WRITERS[name](monkeypatch, tmp_path, SHAPES[shape]), tmp_path / "reference")
