"""The public names of the client, whose wrong calls mypy reports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stretto_client
from stretto_contract.schema import OptionsRecord

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
