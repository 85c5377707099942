"""The option schema is checked by pydantic, and mypy reports wrong client calls."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

import stretto_client
from stretto_contract.schema import BY_FAMILY, Expected, OptionsRecord

ROOT = Path(__file__).parents[2]
MISTAKES = """
from stretto_client import RecordedVoice, SpeechClient

async def use(client: SpeechClient) -> None:
    client.speak("a", seed=1, voice=RecordedVoice(b""), audio={"temperature": 0.5}, encoding="pcm_s16le")
    client.transcribe(b"", temperature=0.0, task="understand")
    client.converse([], b"", seed=3, output={"codes": True})
    client.speak("a", sed=1)  # error
    client.speak("a", seed="1")  # error
    client.speak("a", audio={"temprature": 0.5})  # error
    client.speak("a", chunking={"playout_s": "long"})  # error
    client.speak("a", encoding="mp3")  # error
    client.transcribe(b"", text={"max_rows": 1.5})  # error
    client.converse([], guidance={"policy": "never"})  # error
"""


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Annotated[int, Expected("an integer", ge=1, le=3)], [1, 3], [0, 4, 1.5, "1"]),
        (Annotated[float, Expected("a number")], [1, 0.5], [float("inf"), float("nan"), "1", True]),
        (Annotated[str, Expected("a name", pattern="^a+$")], ["aa"], ["ab", "aa\n", 1]),
        (Annotated[str, BY_FAMILY], ["a", 1, None, [1]], []),
    ],
)
def test_pydantic_checks_expected_value_limits(kind: Any, good: list[Any], bad: list[Any]) -> None:
    adapter = TypeAdapter[Any](kind)
    assert [adapter.validate_python(value, strict=True) for value in good] == good
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value, strict=True)


def test_only_public_names_can_be_imported() -> None:
    assert {name for names in stretto_client.MODULES.values() for name in names.split()} == set(stretto_client.__all__)
    assert all(getattr(stretto_client, name) is not None for name in stretto_client.__all__)
    assert stretto_client.OptionsRecord is OptionsRecord
    with pytest.raises(AttributeError, match="no attribute 'Client'"):
        _ = stretto_client.Client


@pytest.mark.nightly
def test_type_checker_reports_wrong_options(tmp_path: Path) -> None:
    source = tmp_path / "mistakes.py"
    source.write_text(MISTAKES)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", source]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    found = [int(line) for line in re.findall(r"mistakes\.py:(\d+): error", ended.stdout)]
    expected = [number for number, line in enumerate(MISTAKES.splitlines(), 1) if "# error" in line]
    assert sorted(set(found)) == expected, ended.stdout + ended.stderr
