"""Conversion of VALL-E: mismatches give a clear one-line message, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints.random_espnet import command, convert, write_release
from stretto.convert.make_repository import main as make_repository
from tests.refused_conversion import Edit, Refuses, edited

MODEL, CONFIG = "valle.pth", "config.yaml"
AR = "corelm.ar_decoder.blocks.1.attn."


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("valle") / "release")


@pytest.fixture
def release(published: Path, tmp_path: Path) -> Path:
    """Return a copy of the release whose files a test may replace."""
    return Path(shutil.copytree(published, tmp_path / "release"))


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (MODEL, lambda t: t.pop("corelm.emb.weight"), "missing: corelm.emb.weight"),
        (MODEL, lambda t: t.pop(f"{AR}key.weight"), f"missing: {AR}key.weight"),
        (MODEL, lambda t: t.pop("corelm.nar_decoder.level_emb.weight"), "missing: corelm.nar_decoder.level_emb.weight"),
        (MODEL, lambda t: t.update({f"{AR}key.bias": torch.ones(64)}), f"unknown: {AR}key.bias"),
        (
            MODEL,
            lambda t: t.update({f"{AR}value.bias": torch.ones(32)}),
            f"wrong shape: {AR}value.bias [32] instead of [64]",
        ),
        (
            MODEL,
            lambda t: t.update({"corelm.nar_decoder.pos_emb.weight": torch.ones(9, 64)}),
            "wrong shape: corelm.nar_decoder.pos_emb.weight",
        ),
        (CONFIG, lambda c: c.update(corelm="ar_delay"), "corelm: expected valle, got 'ar_delay'"),
        (CONFIG, lambda c: c["corelm_conf"].update(qk_norm=True), "corelm_conf.qk_norm: expected false, got true"),
        (
            CONFIG,
            lambda c: c["corelm_conf"].update(ar_layer=0),
            "corelm_conf.ar_layer: expected a whole number >= 1, got 0",
        ),
        (
            CONFIG,
            lambda c: c["corelm_conf"].update(head=3),
            "corelm_conf.att_unit: expected a multiple of head, 3, got 64",
        ),
        (CONFIG, lambda c: c.update(codec_token_in_use=7), "codec_token_in_use: expected a number of codebooks >= 2"),
        (CONFIG, lambda c: c["token_bias"].pop("text_bpe"), "token_bias.text_bpe is missing"),
        (
            CONFIG,
            lambda c: c["token_bias"].update(codec=[256, 1256]),
            "token_bias.codec: expected [first, end) of 412 ids",
        ),
        (CONFIG, lambda c: c["token_list"].__setitem__(67, "<tts_task>"), "token_list: missing <bpe_tts_task>"),
        (
            CONFIG,
            lambda c: c["token_list"].__setitem__(5, "<eos>"),
            "token_list: expected <sos/eos> at index 5, got <eos>",
        ),
        (CONFIG, lambda c: c["token_bias"].update(text_bpe=[380, 412]), "with at most 32 tokens, got "),
    ],
)
def test_error_names_mismatched_checkpoint_contents(
    release: Path, file: str, edit: Edit, message: str, refuses: Refuses
) -> None:
    with edited(release / file) as content:
        edit(content)
    refuses(command(release, release.parent / "out"), message)


def test_valle_checkpoint_without_refinement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = convert(tmp_path)
    record = json.loads((checkpoint / "config.json").read_text())
    assert (record["vocab_size"], record["speech_family"]) == (413, "valle")
    shutil.rmtree(checkpoint / "refinement")
    assert make_repository(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "served")]) == 1
    assert "expected refinement/, which fills in codebooks of valle" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()
