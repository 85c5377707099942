"""Files of Turbo's releases: which are read, and which ids a tokenizer may have."""

import json
from pathlib import Path

import pytest

from plugins.chatterbox.lab.random_chatterbox import write_turbo
from stretto.convert.command import main
from stretto.errors import CheckpointError
from stretto_chatterbox.turbo import gpt2_tokenizer


@pytest.mark.parametrize("text", ["- a list\n", "a: !python/object:os.system {}\n", "layers: 30\n"])
def test_yaml_file_beside_the_weights_is_not_read(text: str, tmp_path: Path) -> None:
    release = write_turbo(tmp_path / "release")
    (release / "t3_turbo_v1.yaml").write_text(text)
    assert main(["chatterbox", "--model", str(release), "--out", str(tmp_path / "out")]) == 0


def test_token_ids_are_bounded_by_the_number_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 10**9}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"vocab\.json: 'b': expected an id in \[0, 65538\), got 1000000000"):
        gpt2_tokenizer(tmp_path)
