"""Releases of Kyutai and NVIDIA name their files in config.json."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.kyutai.lab import random_kyutai_stt, random_kyutai_tts, random_moshi, random_personaplex
from stretto.convert.command import main
from stretto.testing.releases import edited
from tests.refused_conversion import Refuses
from tests.tiers import by_night

Write = Callable[..., Path]


def write_tts_with_conditions(folder: Path, **changed: Any) -> Path:
    """Write a release like that of 1.6B."""
    return random_kyutai_tts.write_release(folder, base=random_kyutai_tts.LARGE, **changed)


SMALL = {"num_layers": 1, "depformer_num_layers": 1}
WRITERS: dict[str, tuple[str, Write]] = {
    "stt": ("kyutai-stt", random_kyutai_stt.write_release),
    "tts with recordings": ("kyutai-tts", random_kyutai_tts.write_release),
    "tts with conditions": ("kyutai-tts", write_tts_with_conditions),
    "moshi": ("moshi", random_moshi.write_release),
    "personaplex": ("personaplex", random_personaplex.write_release),
}


# Matrices of fields and values, by day of one family.
BY_DAY = pytest.mark.parametrize("named", ["stt", *by_night(*list(WRITERS)[1:])], indirect=True)


@pytest.fixture(scope="module")
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the family and the folder of a release whose config.json names all files."""
    family, write = WRITERS[request.param]
    changed = {"moshi_name": "weights@7.safetensors", "mimi_name": "a.safetensors", "tokenizer_name": "words.model"}
    return family, write(tmp_path_factory.mktemp("named") / "release", **changed, **SMALL)


def words(family: str, release: Path, out: Path) -> list[str]:
    """Return the converter's command line."""
    return [family, "--model", str(release), "--out", str(out)]


@pytest.mark.parametrize("named", WRITERS, indirect=True)
def test_files_with_any_names_are_read(named: tuple[str, Path], tmp_path: Path) -> None:
    """The weights are not confused with those of Mimi, whose name comes first."""
    assert main(words(*named, tmp_path / "out")) == 0


@BY_DAY
@pytest.mark.parametrize("value", [1 << 63, 0, "32", *by_night(30_000_000, -1, None, 32.0, True)])
@pytest.mark.parametrize(
    "field", ["quantizer.n_q", "quantizer.bins", "transformer.num_layers", "transformer.num_heads", "seanet.n_filters"]
)
def test_size_of_mimi_is_bounded_before_it_is_built(
    field: str, value: object, named: tuple[str, Path], tmp_path: Path, refuses: Refuses
) -> None:
    family, release = named
    copied = Path(shutil.copytree(release, tmp_path / "release", copy_function=os.link))
    part, _, name = field.partition(".")
    with edited(copied / "mimi.json") as record:
        record[part][name] = value
    refuses(words(family, copied, tmp_path / "out"), f"mimi.json: {field}: expected an integer in [1, ")


def test_moshi_release_without_config_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have the names of the first releases."""
    release = random_moshi.write_release(tmp_path / "release", **SMALL)
    monkeypatch.setattr("stretto_kyutai.moshi.convert.FIRST", {**random_moshi.CONFIG, **SMALL})
    (release / "config.json").unlink()
    assert main(words("moshi", release, tmp_path / "out")) == 0


@BY_DAY
@pytest.mark.parametrize(
    "name", ["../weights@7.safetensors", "/etc/passwd", "", "none.bin", 3, *by_night("a/b", "..", None, ["a"])]
)
@pytest.mark.parametrize("field", ["moshi_name", "mimi_name", "tokenizer_name"])
def test_name_of_another_place_is_refused(
    field: str, name: object, named: tuple[str, Path], tmp_path: Path, refuses: Refuses
) -> None:
    family, release = named
    copied = Path(shutil.copytree(release, tmp_path / "release", copy_function=os.link))
    with edited(copied / "config.json") as config:
        config[field] = name
    expected = "none.bin is missing" if name == "none.bin" else f"expected a file name without a folder, got {name!r}"
    refuses(words(family, copied, tmp_path / "out"), f"config.json: {field}: ", expected)
