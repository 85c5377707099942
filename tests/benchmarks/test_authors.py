"""The benchmark against authors' code: dimensions of the releases, and the files that the packages read."""

from math import prod
from pathlib import Path

import yaml

from benchmarks.authors import pocket_tts_config
from benchmarks.checkpoints.random_pocket import config, shapes, write_release


def test_the_release_is_as_large_as_the_published_one() -> None:
    """89.4 M parameters of the language model and 20.1 M of the codec, in the authors' code with their YAML file."""
    sizes = {"flow_lm": 0, "mimi": 0}
    for name, shape in shapes(config("published")).items():
        sizes[name.partition(".")[0]] += prod(shape)
    assert {part: round(size / 1e5) for part, size in sizes.items()} == {"flow_lm": 894, "mimi": 201}


def test_the_package_reads_the_release(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "english_2m")
    record = yaml.safe_load(pocket_tts_config(release).read_text())
    assert Path(record["weights_path"]).exists()
    assert Path(record["flow_lm"]["lookup_table"]["tokenizer_path"]).name == "tokenizer.model"
    assert record["mimi"] == config("english_2m")["mimi"]
