"""What a command line names: a release, a repository or a folder."""

from pathlib import Path

import pytest

from stretto.releases.errors import BadArgument, ReleaseError, Unavailable
from stretto.releases.target import parse


@pytest.mark.parametrize("page", ["https://huggingface.co/", "huggingface.co/", "hf.co/", ""])
def test_repository_may_be_given_by_its_page(page: str) -> None:
    target = parse(f"{page}acme/voice#french")
    assert (target.release, target.repository, target.part) == ("acme/voice#french", "acme/voice", "french")


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
        ("a/b/c", BadArgument),
        ("../none", BadArgument),
        ("-x", BadArgument),
        ("\0", BadArgument),
        ("", BadArgument),
        ("a/" + "b" * 96, BadArgument),
        ("https://example.com/acme/voice", BadArgument),
        ("no-such-release", Unavailable),
    ],
)
def test_malformed_and_unknown_names_are_refused(text: str, error: type[ReleaseError]) -> None:
    with pytest.raises(error):
        parse(text)
