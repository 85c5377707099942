"""A fixture of replies is written, and compared with new replies."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.authors.reply_fixture import Replies, equal_in, run

MADE: Replies = [{"text": "a", "codes": [1, 2], "lead": 0.5}, {"text": "b", "codes": [3], "lead": 0.25}]


def write(fixture: Path, made: Replies) -> None:
    fixture.write_text(json.dumps({"replies": made}))


def run_with(made: Replies, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["replies", *words])
    run("What a model replies.", lambda: made, write, equal_in("text", "codes"))


def test_reply_fixture_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = tmp_path / "replies.json"
    run_with(MADE, monkeypatch, str(fixture))
    assert json.loads(fixture.read_text()) == {"replies": MADE}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": [4]}, "reply 1 differs in codes"),
        ({"text": "c"}, "reply 1 differs in text"),
        (None, "expected 2 replies, got 1"),
        ({"lead": 0.125}, None),
    ],
    ids=["codes", "case", "number", "what is not compared"],
)
def test_check_reports_differences_without_writing(
    changes: dict[str, Any] | None, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(fixture := tmp_path / "replies.json", MADE)
    made = MADE[:1] if changes is None else [MADE[0], MADE[1] | changes]
    if message is None:
        run_with(made, monkeypatch, "--check", str(fixture))
    else:
        with pytest.raises(AssertionError, match=message):
            run_with(made, monkeypatch, "--check", str(fixture))
    assert json.loads(fixture.read_text()) == {"replies": MADE}
