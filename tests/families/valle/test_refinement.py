"""VALL-E's refinement gives the authors' codes, unbatched and batched with other lengths."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints.random_espnet import KNOWN, convert
from stretto.codecs.refinement import FOLDER, Passage, refinement_of
from stretto.config import DecoderConfig
from stretto.decoder.worker import open_codec
from stretto.errors import CheckpointError
from stretto.families.valle.refinement import ValleRefinement, load
from tests.valle_release import REPLIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("valle")) / FOLDER


@pytest.fixture(scope="module")
def refinement(folder: Path) -> ValleRefinement:
    return load(folder)


def test_decoder_loads_the_refinement_of_the_checkpoint_family(folder: Path, tmp_path: Path) -> None:
    config = DecoderConfig(codec="espnet_dac")
    assert isinstance(refinement_of(open_codec(config, folder.parent)), ValleRefinement)
    other = shutil.copytree(folder.parent, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"speech_family": "opuslm"}))
    with pytest.raises(CheckpointError, match="refinement: family opuslm has no model that fills in codebooks"):
        open_codec(config, other)


def passage(reply: dict[str, Any]) -> Passage:
    """Return a passage as the engine sends it: ESPnet's prompt, then a row with only the marker."""
    start = [KNOWN.codec_marker] + [KNOWN.nothing] * (KNOWN.num_codebooks - 1)
    return Passage(np.array([*reply["prefix"], start]), np.array(reply["codes"][0]))


def test_fixture_is_numerically_unambiguous() -> None:
    """Every code leads its runner-up clearly, and lengths differ, so that batches are padded."""
    assert min(reply["filled_lead"] for reply in REPLIES) > 1e-3
    assert len({len(reply["prefix"]) + len(reply["codes"][0]) for reply in REPLIES}) > 2


def test_codes_match_the_published_model(refinement: ValleRefinement) -> None:
    alone = [refinement.fill([passage(reply)])[0] for reply in REPLIES]
    told: list[None] = []
    together = refinement.fill([passage(reply) for reply in REPLIES], lambda: told.append(None))
    assert len(told) == len(together[0]) - 1, "once behind each codebook that is filled in"
    for reply, each, beside in zip(REPLIES, alone, together, strict=True):
        np.testing.assert_array_equal(each, reply["codes"])
        np.testing.assert_array_equal(beside, reply["codes"])


def test_refinement_depends_on_the_whole_utterance_and_voice(refinement: ValleRefinement) -> None:
    """The first half of an utterance depends on the second, and all of it on the voice."""
    heard = {"later": False, "voice": False}
    for reply in REPLIES:
        whole = passage(reply)
        half = len(whole.first_codes) // 2
        later = Passage(
            whole.prompt, np.append(whole.first_codes[:half], (whole.first_codes[half:] + 5) % KNOWN.codebook_size)
        )
        voice = Passage(np.concatenate([whole.prompt[:-4], whole.prompt[-3:]]), whole.first_codes)
        before, *after = (refinement.fill([each])[0] for each in (whole, later, voice))
        heard["later"] |= bool((before[:, :half] != after[0][:, :half]).any())
        heard["voice"] |= bool((before != after[1]).any())
    assert heard == {"later": True, "voice": True}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("width"), "expected the parameters of a refinement, got TypeError"),
        (lambda r: r.update(more=1), "expected the parameters of a refinement, got TypeError"),
        (lambda r: r.update(num_heads=3), "expected at least two codebooks and a width divisible by num_heads"),
        (lambda r: r.update(num_heads=0), "expected at least two codebooks and a width divisible by num_heads"),
        (lambda r: r.update(num_codebooks=1), "expected at least two codebooks and a width divisible by num_heads"),
        (lambda r: r.update(codes=350), "expected the ids of all codes and the end to be below num_ids"),
        (lambda r: r.update(width="64"), "expected the parameters of a refinement"),
        (lambda r: r.update(num_layers=3), r"missing \['blocks\.2\."),
    ],
)
def test_invalid_config_numbers_are_refused(
    folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    record = json.loads((folder / "config.json").read_text())
    edit(record)
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_mismatched_refinement_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a JSON object, got FileNotFoundError"):
        load(tmp_path)
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        load(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["ln.weight.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"wrong shape \['ln\.weight\.weight'\]"):
        load(tmp_path)
