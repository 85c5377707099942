"""Broken or unrelated files are refused with a one-line message; nothing is written or left over."""

import errno
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer

from lab.releases.random_espnet import Published
from stretto.convert.command import main
from stretto.convert.conversion import check_codec, refusing
from stretto.convert.release import FILES, audio_tokenizer_of, convertible, read_byte_level_bpe, read_tokenizer
from stretto.errors import CheckpointError
from stretto.families.tiny.family import TINY
from tests.published_checkpoints import FAMILIES, command, convert, write_release

Change = Callable[[Published], object]


def tensors(change: Callable[[dict[Any, Any]], Any]) -> Change:
    """Return an edit that applies `change` to the tensors in the weights file."""

    def apply(published: Published) -> None:
        stored = torch.load(published.model, weights_only=True)
        torch.save(change(stored.get("module", stored)), published.model)

    return apply


def config(change: Callable[[dict[str, Any]], object]) -> Change:
    """Return an edit that applies `change` to config.yaml."""

    def apply(published: Published) -> None:
        record = yaml.safe_load(published.config.read_text())
        change(record)
        published.config.write_text(yaml.safe_dump(record, sort_keys=False))

    return apply


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Change:
    """Return an edit that applies `change` to tokenizer.json."""

    def apply(published: Published) -> None:
        path = published.tokenizer / "tokenizer.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return apply


def backbone(**numbers: object) -> Change:
    """Return an edit that writes `numbers` into the backbone's config.json."""

    def apply(published: Published) -> None:
        path = published.backbone / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | numbers))

    return apply


def cut_short(published: Published) -> None:
    content = published.model.read_bytes()
    published.model.write_bytes(content[: len(content) * 99 // 100])


def without_weights_of_the_codec(published: Published) -> None:
    assert published.codec is not None
    for path in published.codec.glob("*.pth"):
        path.unlink()


def written(field: str, text: str) -> Change:
    """Return an edit that replaces the contents of a release file with `text`."""
    return lambda published: getattr(published, field).write_text(text)


def linked_tokenizer(published: Published) -> None:
    """Replace a tokenizer file, which would be copied, with a link to a file on this machine."""
    (published.tokenizer / "tokenizer_extra.json").symlink_to("/etc/passwd")


PANICS = {"type": "Precompiled", "precompiled_charsmap": {}}  # a normalizer for which `tokenizers` panics
REFUSED: list[tuple[str, Change, str]] = [
    ("opuslm", written("config", "a: 2026-02-31"), "expected YAML, got ValueError('day is out of range for month')"),
    ("opuslm", linked_tokenizer, "tokenizer_extra.json: expected a file of this release, got a link to"),
    ("bagpiper", config(lambda record: record.update(multimodal_io={"discrete_audio": 3})), "cannot be read as a"),
    ("opuslm", cut_short, "expected tensors, got"),
    (
        "opuslm",
        tensors(lambda found: {"module": [1]}),
        "expected tensors by name, or under 'module', 'state_dict' or 'model'; got none",
    ),
    ("opuslm", tensors(lambda found: found | {1: torch.zeros(1), "step": 2}), "got ['1', 'step']"),
    (
        "opuslm",
        tensors(lambda found: found | {"corelm.emb.weight": torch.tensor(0.0)}),
        "corelm.emb.weight [] instead of [432",
    ),
    (
        "opuslm",
        tensors(lambda found: found | {"corelm.head_emb.weight": torch.zeros(8, 64)}),
        "[8, 64] instead of [9, 64]",
    ),
    (
        "bagpiper",
        config(lambda record: record.update(quantization_config={"quant_method": "awq", "bits": 4})),
        "expected unquantized weights, got quantization_config 'awq'; convert the original release, then quantize",
    ),
    (
        "opuslm",
        tensors(lambda found: found | {"corelm.layers.0.q_proj.qweight": torch.zeros(1)}),
        "expected unquantized weights, got a tensor corelm.layers.0.q_proj.qweight; convert the original release",
    ),
    ("opuslm", tokenizer(lambda record: record.pop("model")), "tokenizer.json: cannot be loaded as a tokenizer"),
    (
        "opuslm",
        tokenizer(lambda record: record.update(normalizer=PANICS)),
        "loaded as a tokenizer: Precompiled",
    ),
    ("bagpiper", tokenizer(lambda record: record.update(decoder=None)), "expected a byte-level decoder, got none"),
    (
        "bagpiper",
        config(lambda record: record["model"]["model_conf"].update(dtype="bf16")),
        "got 'bf16'; choose one with --dtype",
    ),
    (
        "opuslm",
        config(lambda record: record["token_bias"].update(ssl=["a", "b"])),
        "token_bias.ssl: expected [first, end)",
    ),
    (
        "opuslm",
        config(lambda record: record["transformer_conf"].update(n_ctx="long")),
        "backbone: invalid parameters for olmo2",
    ),
    ("opuslm", backbone(model_type=["olmo2"]), "expected one of ['llama', 'olmo2', 'qwen2', 'qwen3'], got ['olmo2']"),
    (
        "opuslm",
        without_weights_of_the_codec,
        "expected weights (.bin, .pt, .pth or .safetensors) and the codec's parameters, got no weights",
    ),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_broken_releases_are_refused_in_one_line(
    family: str, change: Change, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = write_release(family, tmp_path / "release")
    change(published)
    capsys.readouterr()
    assert main(command(family, published, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert said.startswith("stretto convert: ")
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("family", sorted(set(convertible()) - {"opuslm", "opuslm-dialogue", "vita-audio"}))
def test_unused_audio_tokenizers_are_refused(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [family, *("--model", str(tmp_path)), *("--tokenizer", str(tmp_path)), *("--ssl-tokenizer", str(tmp_path))]
    assert main([*words, *("--out", str(tmp_path / "out"))]) == 1
    assert f"--ssl-tokenizer: {family} uses no audio tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("windows", [("0", "800"), ("50", "0"), ("3", "800"), ("800", "800")])
def test_impossible_audio_windows_are_refused(
    windows: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = write_release("bagpiper", tmp_path / "release")
    half, whole = windows
    words = ["--n-window", half, "--n-window-infer", whole]
    assert main([*command("bagpiper", published, tmp_path / "out"), *words]) == 1
    said = capsys.readouterr().err
    assert f"n_window_infer must be a multiple of 2 * n_window, got {whole} and {half}" in said


def test_full_disk_during_conversion_leaves_no_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    published = write_release("opuslm", tmp_path / "release")
    monkeypatch.setattr("os.fsync", full)
    assert main(command("opuslm", published, tmp_path / "out")) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("size", ["0", "-1", "nan"])
def test_shard_size_must_be_positive(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Published(*[tmp_path / "none"] * 4)
    with pytest.raises(SystemExit):
        main([*command("opuslm", nowhere, tmp_path / "out"), "--shard-gb", size])
    assert f"--shard-gb must be > 0, got {size}" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_ambiguous_release_prints_a_hint(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OpusLM and the dialogue model have the same tensors and tokens; only their training differs."""
    published = write_release(family, tmp_path / "release")
    convert(family, published, tmp_path / "a")
    assert "another family?" not in capsys.readouterr().out
    others = {"opuslm": "opuslm-dialogue", "opuslm-dialogue": "opuslm"}
    if family in others:
        convert(others[family], published, tmp_path / "b")
        assert f"unlike the release of {others[family]}; is this another family?" in capsys.readouterr().out


def test_panic_of_a_library_is_a_refusal() -> None:
    record = {"version": "1.0", "added_tokens": [], "normalizer": PANICS, "model": {"type": "BPE", "vocab": {}}}
    with pytest.raises(CheckpointError, match=r"^release: PanicException"), refusing("release"):
        Tokenizer.from_str(json.dumps(record))


def test_codec_without_a_reader_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no reader for the published files of codec 'dac'"):
        check_codec(tmp_path, replace(TINY, codec="dac"))


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (None, "expected tokenizer_config.json with added_tokens_decoder, got None"),
        ({"x": {"content": "<s>"}}, "added_tokens_decoder: expected tokens by id, got 'x': "),
        ({"9": {"content": "<s>"}}, "added token '<s>': expected the next id, 2, got 9"),
        ({"2": {"content": "\ud800"}}, "added_tokens_decoder: expected tokens by id, got '2': "),
        ({"\u00b2": {"content": "<s>"}}, "added_tokens_decoder: expected tokens by id, got '\u00b2': "),
        (
            {str(1 << 63): {"content": "<s>"}},
            "added_tokens_decoder: expected tokens by id, got '9223372036854775808': ",
        ),
    ],
)
def test_added_tokens_must_follow_the_vocabulary(tmp_path: Path, added: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected vocab\.json and merges\.txt of a tokenizer, got "):
        read_byte_level_bpe(tmp_path)
    vocabulary, merges = (tmp_path / name for name in FILES)
    vocabulary.write_text(json.dumps({"a": 0, "b": 1}))
    merges.write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_byte_level_bpe(tmp_path)


@pytest.mark.parametrize("token_id", [1 << 63, 10**9, 65_538, -1, 1.0, "1", None, True])
def test_token_ids_are_bounded_by_the_number_of_tokens(token_id: object, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": token_id}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    expected = f"vocab.json: 'b': expected an id in [0, 65538), got {token_id!r}"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        read_byte_level_bpe(tmp_path)


def test_token_ids_of_tokenizer_json_are_bounded(tmp_path: Path) -> None:
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    record = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1_000_000_000}, "merges": []}, "decoder": decoder}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **record}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: 'b': expected an id in \[0, 65538\), got 1000000000"):
        read_tokenizer(tmp_path)


def test_family_that_cannot_be_converted_has_no_audio_tokenizer() -> None:
    assert audio_tokenizer_of("no_such_family") is None
