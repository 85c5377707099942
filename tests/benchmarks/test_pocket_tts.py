"""The benchmark of Pocket TTS: dimensions of its release, and the files that the authors' package reads."""

from math import prod
from pathlib import Path

import yaml

from benchmarks.checkpoints.random_pocket import config, shapes, write_release
from benchmarks.pocket_tts import write_theirs


def test_the_release_is_as_large_as_the_published_one() -> None:
    """89.4 M parameters of the language model and 20.1 M of the codec, in the authors' code with their YAML file."""
    sizes = {"flow_lm": 0, "mimi": 0}
    for name, shape in shapes(config("published")).items():
        sizes[name.partition(".")[0]] += prod(shape)
    assert {part: round(size / 1e5) for part, size in sizes.items()} == {"flow_lm": 894, "mimi": 201}


def test_the_package_reads_the_release(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "english_2m")
    record = yaml.safe_load(write_theirs(release).read_text())
    assert Path(record["weights_path"]).exists()
    assert Path(record["flow_lm"]["lookup_table"]["tokenizer_path"]).name == "tokenizer.model"
    assert record["mimi"] == config("english_2m")["mimi"]
