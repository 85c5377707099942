"""Files of releases: which are read, which ids a tokenizer may have, and which releases are refused."""

import json
from pathlib import Path

import pytest

from plugins.chatterbox.lab.random_chatterbox import write_turbo
from stretto.convert.command import main
from stretto.errors import CheckpointError
from stretto.family.recognition import Listing
from stretto_chatterbox.recognise import recognise
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


def test_flash_is_refused_with_the_reason() -> None:
    names = frozenset({"t3_flash.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json"})
    refusals = [match.refusal for match in recognise(Listing(names, {}))]
    assert len(refusals) == 1
    assert "blocks of 16 codes" in refusals[0]
