"""`stretto chat` with lines on standard input, against the fake server."""

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile

from tests.client.conftest import CommandLine, Script
from tests.client.fake_server import Abort, Chunk, ErrorText, Request, Step

SPOKEN = [
    Chunk(0, None, text="fi"),
    Chunk(1, None, text="ne"),
    Chunk(2, 640, codes=[[1], [2]]),
    Chunk(3, 1280, codes=[[3, 5], [4, 6]], is_final=True, is_last=True),
]
WRITTEN = [Chunk(0, None, text="rain"), Chunk(1, None, text=".", is_final=True, is_last=True)]


async def chat(run: CommandLine, script: Script, lines: list[str], *arguments: str) -> tuple[Any, str, str]:
    """Write lines to `stretto chat`; return its status, output and errors."""
    return await run(script, "chat", *arguments, stdin="".join(f"{line}\n" for line in lines).encode())


def turns(request: Request) -> list[dict[str, Any]]:
    return json.loads(request["messages"])


async def test_chat_lines_are_turns_and_replies_enter_the_next_request(run: CommandLine, tmp_path: Path) -> None:
    arguments = ("--system", "be terse", "--task", "dialogue", "--seed", "3", "--out-dir", "said/today")
    code, out, errors = await chat(run, lambda _: SPOKEN, ["how are you?", "", "  and now? "], *arguments)
    assert (code, out) == (0, "fine\nfine\n")
    first, second = run.requests
    begun = [{"role": "system", "text": "be terse"}, {"role": "user", "text": "how are you?"}]
    reply = {"role": "assistant", "text": "fine", "codes": [[1, 3, 5], [2, 4, 6]]}
    assert turns(first) == begun
    assert turns(second) == [*begun, reply, {"role": "user", "text": "and now?"}]
    assert json.loads(second["options"]) == {"seed": 3, "output": {"codes": True}}
    assert second["task"] == b"dialogue"
    assert [line.partition(": ")[0] for line in errors.splitlines()] == [
        "said/today/reply-1.wav",
        "said/today/reply-2.wav",
    ]
    assert len(soundfile.read(tmp_path / "said/today/reply-2.wav")[0]) == 1920


async def test_chat_sends_spoken_turns_with_their_audio(run: CommandLine, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two words.wav", np.zeros(80), 8_000)
    np.save(tmp_path / "codes.npy", np.array([[7, 8]]))
    lines = ["@two words.wav", "@codes.npy what is this?"]
    code, out, _ = await chat(run, lambda _: WRITTEN, lines, "--clone", "codes.npy")
    assert (code, out) == (0, "rain.\nrain.\n")
    first, second = run.requests
    assert turns(first) == [{"role": "system", "codes": [[7, 8]]}, {"role": "user", "audio": "audio"}]
    assert turns(second)[2:] == [
        {"role": "assistant", "text": "rain."},
        {"role": "user", "codes": [[7, 8]], "text": "what is this?"},
    ]
    assert second["audio"] == first["audio"] == (tmp_path / "two words.wav").read_bytes()
    assert not list(tmp_path.glob("reply-*")), "a reply without sound leaves no file"


async def test_chat_does_not_request_codes_from_text_tasks(run: CommandLine) -> None:
    refusal = (
        "in ensemble 'speech', invalid request: options.output: expected no value (task 'chat' does not speak), got {}"
    )

    def answer(request: Request) -> list[Step]:
        return [ErrorText(refusal)] if "output" in json.loads(request.get("options", "{}")) else WRITTEN

    code, out, errors = await chat(run, answer, ["hello", "again"])
    assert (code, out) == (0, "rain.\nrain.\n")
    assert "error" not in errors
    assert [len(turns(request)) for request in run.requests] == [1, 1, 3]
    code, out, errors = await chat(run, answer, ["hello"], "--options", '{"output": {"sample_rate": 8000}}')
    assert (code, out) == (2, "")
    assert errors.startswith("error: options.output: expected no value")


async def test_refused_chat_turn_is_reported_and_dropped(run: CommandLine) -> None:
    def answer(request: Request) -> list[Step]:
        last = turns(request)[-1]["text"]
        return [Abort(grpc.StatusCode.INVALID_ARGUMENT, "text: no")] if last == "bad" else WRITTEN

    code, out, errors = await chat(run, answer, ["good", "bad", "@none.wav", "better"], "--json")
    assert code == 2
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["rain.", "rain."]
    assert "error: text: no\n" in errors
    assert "none.wav" in errors
    assert [turn.get("text") for turn in turns(run.requests[-1])] == ["good", "rain.", "better"]


async def test_unavailable_server_ends_the_chat(run: CommandLine) -> None:
    code, out, errors = await chat(run, lambda _: [Abort(grpc.StatusCode.UNAVAILABLE, "draining")], ["a", "b"])
    assert (code, out, errors) == (3, "", "error: draining\n")
    assert len(run.requests) == 1
