"""docs/api.md: all curl and Python examples on the page run."""

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest

from stretto_gateway.encoding import wav_header
from stretto_gateway.guard import ADMIN_PATHS
from tests.client.fake_server import PROFILE, Chunk, Request, Step
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start
from tests.gateway.realtime.caller import RATE, spoken
from tests.gateway.test_chat import task
from tests.gateway.test_openapi import of_plugins
from tests.patience import PATIENCE_S

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
CLONES = [each | {"system": ["text", "audio"]} if each["name"] == "tts" else each for each in PROFILE["tasks"]]
TALKS = PROFILE | {"tasks": [*CLONES, task("dialogue", needs=[], also=["text", "audio"])]}
# The page shows the list of models alone, of translations that no family has them, and calls in JavaScript. Adapters
# are on docs/production.md.
CALLS = ("/v1/realtime/calls", "/v1/realtime/calls/{call_id}/hangup")
WITHOUT_A_LINE = ("/v1/models/{name}", "/v1/audio/receipts/key", "/v1/audio/translations", *CALLS, *ADMIN_PATHS)


def script(request: Request) -> list[Step]:
    is_heard = request["task"] == b"asr"
    return [Chunk(0, None, text="It is twenty past nine.", is_final=True, is_last=True)] if is_heard else SPOKEN


async def test_api_documentation_examples_run(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start(script, TALKS, voices=tmp_path / "voices", jobs=tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    question = spoken()
    (tmp_path / "question.wav").write_bytes(wav_header(RATE, question.nbytes) + question.tobytes())
    monkeypatch.setenv("OPENAI_BASE_URL", f"{running.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "anything")
    names: dict[str, object] = {}

    def run_all() -> None:
        for language, block in BLOCKS:
            if language == "python":
                exec(compile(block, "docs/api.md", "exec"), names)
            else:
                shell = ["bash", "-euc", block.replace("curl -s", "curl -sf")]
                done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
                assert done.returncode == 0, (block, done)

    await asyncio.to_thread(run_all)
    assert names["text"] == "It is twenty past nine."
    assert names["heard"] == "It is twenty past nine."
    assert names["said"] == b"\x00\x20" * NUM_SAMPLES
    assert names["written"] == b"\x00\x20" * NUM_SAMPLES
    assert names["names"] == ["tiny"]
    assert (tmp_path / "speech.mp3").stat().st_size > 1000
    assert (tmp_path / "mine.mp3").stat().st_size > 1000
    assert len([*(tmp_path / "voices" / "everybody").iterdir()]) == 1, "one of the two is deleted"
    assert (tmp_path / "speech.wav").read_bytes().startswith(b"RIFF")
    assert json.loads((tmp_path / "batch.json").read_text())["succeeded"] == 2
    assert json.loads((tmp_path / "reply.json").read_text())["choices"][0]["message"]["audio"]["data"]
    shown = " ".join(block for _, block in BLOCKS)
    paths = json.loads((tmp_path / "openapi.json").read_text())["paths"]
    for path in paths.keys() - {path for _, path in of_plugins()}:
        begin = path.removeprefix("/v1").partition("{")[0]
        assert path in WITHOUT_A_LINE or begin in shown, f"{path} has no line on the page"
