"""Words of the command line that name a release, a repository or a folder."""

from pathlib import Path

import pytest

from stretto.releases.messages import BadArgument, ReleaseError, Unavailable
from stretto.releases.target import parse, release_of


@pytest.mark.parametrize("page", ["https://huggingface.co/", "huggingface.co/", "hf.co/", ""])
def test_repository_may_be_given_by_its_page(page: str) -> None:
    target = parse(f"{page}acme/voice#french")
    assert release_of(f"{page}acme/voice#french") == target.release
    assert (target.release, target.repository, target.part) == ("acme/voice#french", "acme/voice", "french")


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("https://huggingface.co/acme/Voice/tree/main", "acme/Voice"),
        ("https://huggingface.co/acme/Voice/", "acme/Voice"),
        ("http://www.huggingface.co/acme/Voice?library=x", "acme/Voice"),
        ("hf://acme/Voice", "acme/Voice"),
        ("acme/Voice/tree/main#part", "acme/Voice#part"),
        ("acme/Voice:latest", "acme/Voice"),
        (" acme/Voice ", "acme/Voice"),
        ("Qwen3_TTS", "qwen3-tts"),
        ("QWEN3-TTS:latest", "qwen3-tts"),
        (" qwen3 tts ", "qwen3-tts"),
    ],
)
def test_copied_and_loosely_typed_names_are_understood(text: str, release: str) -> None:
    assert parse(text).release == release


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://hf.co/acme/voice/tree/v2", "write acme/voice --revision v2"),
        ("https://hf.co/acme/voice/blob/main/a/model.bin", "write acme/voice#PART"),
        ("Qwen_TTS", "did you mean qwen3-"),
        ("qwen3-tts:9b", "did you mean qwen3-tts"),
    ],
)
def test_other_names_get_one_hint(text: str, hint: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        parse(text)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alias_names_the_same_release() -> None:
    assert parse("qwen3-tts-1.7b") == parse("qwen3-tts")


def test_folder_of_a_releases_name_needs_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("qwen3-tts").mkdir()
    Path("qwen3-tts/config.json").write_text("{}")
    assert parse("qwen3-tts").folder is None
    assert parse("./qwen3-tts").folder == tmp_path / "qwen3-tts"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("\0", BadArgument),
        ("a/" + "b" * 96, BadArgument),
        ("https://example.com/acme/voice", BadArgument),
        ("no-such-release", Unavailable),
    ],
)
def test_malformed_and_unknown_names_are_refused(text: str, error: type[ReleaseError]) -> None:
    with pytest.raises(error):
        parse(text)


def test_folder_is_found_under_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    for text in ("./a/b", "a/b", "a/../a/b", "~/a/b", str(folder), "./link"):
        assert parse(text).release == str(folder)
    assert parse("./a/b#x").release == f"{folder}#x"


ODD = ["", "-x", "a/b/c", "a//b", "C:x", "a\\b", "x" * 300, f"{'x' * 60}/{'y' * 60}", "a/-b", "-a/b", "a b", "#part"]
ODD_PATHS = ["~nobody-here/x", f"./{'x' * 300}", f"./{'x/' * 3000}", "../x", "a/../../b", "acme/voice\n", "a\0b"]


@pytest.mark.parametrize("text", [*ODD, *ODD_PATHS])
def test_other_words_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseError) as caught:
        parse(text)
    assert caught.value.status == 2


def test_content_changes_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    first = parse(f"{tmp_path}/").content
    assert parse(str(tmp_path)).content == first
    (tmp_path / "file").write_text("ab")
    assert parse(str(tmp_path)).content != first
