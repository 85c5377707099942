"""The command line against the fake server; test_pipes.py has it in processes."""

import asyncio
import json
import re
from pathlib import Path

import grpc
import numpy as np
import pytest
import soundfile

from stretto_client.__main__ import main
from stretto_client.arguments import parse
from tests.client.conftest import CommandLine
from tests.client.fake_server import CHECKED, REPORT, Abort, Chunk, Pause, Request, Step, Taken, Until

UTTERANCE = [
    Chunk(0, None, text="k ae t"),
    Chunk(1, 640, words=("a", "cat")),
    Chunk(2, 1280, is_final=True, is_last=True),
]


async def test_speak_writes_the_file_and_prints_a_summary_line(run: CommandLine, tmp_path: Path) -> None:
    code, out, errors = await run(UTTERANCE, "speak", "a cat", "--voice", "rms", "--seed", "7", "--guidance", "1.5")
    assert (code, errors) == (0, "")
    assert re.fullmatch(
        r"speech\.wav: 0\.12 s of audio, first audio after \d+\.\d\d s, real-time factor \d+\.\d\d, seed 7, "
        r"guidance 1\.5, faults: abrupt_end at 0\.1 s\n",
        out,
    )
    assert len(soundfile.read(tmp_path / "speech.wav")[0]) == 1920
    assert json.loads(run.requests[0]["options"]) == {"voice": "rms", "seed": 7, "guidance_scale": 1.5}


async def test_speak_sends_language_and_instruction(run: CommandLine) -> None:
    await run(UTTERANCE, "speak", "a", "--language", "german", "--instruct", "Slowly.", "--seed", "1")
    assert json.loads(run.requests[0]["options"]) == {"seed": 1} | {"language": "german", "instruct": "Slowly."}


async def test_speak_supports_options_words_and_json(run: CommandLine, tmp_path: Path) -> None:
    options = ("--options", '{"seed": 1, "audio": {"top_k": 5}}', "--seed", "2")
    code, out, _ = await run(UTTERANCE, "speak", "a", "--words", "--json", "--out", "b.flac", *options)
    first, second, summary = out.splitlines()
    assert code == 0
    assert [first.split(), second.split()] == [["0.04", "s", "a"], ["0.04", "s", "cat"]]
    assert json.loads(summary)["report"] == REPORT | CHECKED
    assert json.loads(summary)["audio_s"] == pytest.approx(0.12)
    assert json.loads(run.requests[0]["options"]) == {"seed": 2, "audio": {"top_k": 5}}
    assert (tmp_path / "b.flac").exists()


async def test_speak_requests_and_writes_the_given_encoding(run: CommandLine, tmp_path: Path) -> None:
    steps = [Chunk(0, 640, is_16_bit=True), Chunk(1, 640, is_final=True, is_last=True, is_16_bit=True)]
    code, _, errors = await run(
        steps, "speak", "a", "--encoding", "pcm_s16le", "--sample-rate", "16000", "--check", "off"
    )
    assert (code, errors) == (0, "")
    assert json.loads(run.requests[0]["options"]) == {"output": {"encoding": "pcm_s16le", "sample_rate": 16_000}}
    pcm, rate = soundfile.read(tmp_path / "speech.wav", dtype="int16")
    assert (rate, pcm.tolist()) == (16_000, [8192] * 1280)


async def test_transcribe_prints_the_text(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    steps = [Chunk(0, None, text="a c"), Chunk(1, None, text="at", is_final=True, is_last=True)]
    code, out, errors = await run(steps, "transcribe", "a.wav")
    assert (code, out) == (0, "a cat\n")
    assert re.fullmatch(r"complete after \d+\.\d\d s\n", errors)
    assert (run.requests[0]["audio"], run.requests[0]["task"]) == (b"RIFF\0", b"asr")


async def test_transcribe_reads_standard_input_live(run: CommandLine) -> None:
    """The samples are 16-bit, and an odd last byte is ignored."""
    heard, complete = list[float](), asyncio.Event()

    def listen(request: Request) -> list[Step]:
        if "session" not in request:
            return [Chunk(0, None, session="s1"), Until(complete), Chunk(1, None, "a cat", is_final=True, is_last=True)]
        record = json.loads(request["session"])
        heard.extend(np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist())
        if record["is_last"]:
            complete.set()
        return [Taken(record["part"])]

    stdin = np.array([8192, -16384] * 500, "<i2").tobytes() + b"1"
    code, out, _ = await run(listen, "transcribe", "-", "--rate", "16000", stdin=stdin)
    assert (code, out) == (0, "a cat\n")
    assert heard == [0.25, -0.5] * 500
    assert json.loads(run.requests[0]["options"]) == {"live": True}


async def test_talk_writes_speech_while_reading_standard_input(run: CommandLine, tmp_path: Path) -> None:
    """The first frame of speech arrives before the input is complete."""
    complete = asyncio.Event()

    def answer(request: Request) -> list[Step]:
        if "session" not in request:
            first = Chunk(1, 640, "a c")
            last = Chunk(2, 640, "at", is_final=True, is_last=True)
            return [Chunk(0, None, session="s1"), first, Until(complete), last]
        record = json.loads(request["session"])
        if record["is_last"]:
            complete.set()
        return [Taken(record["part"])]

    stdin = np.zeros(1000, "<i2").tobytes()
    code, out, errors = await run(answer, "talk", "-", "--seed", "7", "--out", "a.wav", stdin=stdin)
    assert (code, out) == (0, "a cat\n")
    assert "0.08 s of audio" in errors
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 1280
    assert (run.requests[0]["task"], json.loads(run.requests[0]["options"])) == (
        b"duplex",
        {"live": True, "seed": 7},
    )


async def test_talk_sends_a_file_in_one_request(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    code, out, _ = await run([Chunk(0, 640, "a", is_final=True, is_last=True)], "talk", "a.wav", "--out", "b.wav")
    assert (code, out) == (0, "a\n")
    assert (run.requests[0]["audio"], run.requests[0]["task"]) == (b"RIFF\0", b"duplex")
    assert len(soundfile.read(tmp_path / "b.wav")[0]) == 640


async def test_talk_command_sends_role_and_voice_recording(run: CommandLine, tmp_path: Path) -> None:
    """They are a system turn before the user's file, or before live audio."""
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    (tmp_path / "me.wav").write_bytes(b"RIFF\1")
    said = [Chunk(0, 640, "a", is_final=True, is_last=True)]
    code, _, _ = await run(said, "talk", "a.wav", "--system", "You teach.", "--clone", "me.wav")
    assert code == 0
    assert json.loads(run.requests[0]["messages"]) == [
        {"role": "system", "text": "You teach.", "audio": "audio"},
        {"role": "user", "audio": "audio"},
    ]
    assert np.atleast_1d(run.requests[0]["audio"]).tolist() == [b"RIFF\1", b"RIFF\0"]
    code, _, _ = await run(said, "talk", "-", "--system", "You teach.", "--voice", "natf2", stdin=b"")
    assert code == 0
    assert json.loads(run.requests[0]["messages"]) == [{"role": "system", "text": "You teach."}]
    assert json.loads(run.requests[0]["options"]) == {"live": True, "voice": "natf2"}
    code, _, errors = await run(said, "talk", "a.wav", "--clone", "me.wav", "--voice", "natf2")
    assert (code, "--clone: expected a file, without --voice" in errors) == (2, True)


@pytest.mark.parametrize(
    ("words", "task"),
    [(["speak", "a"], "tts"), (["transcribe", "-"], "asr"), (["talk", "-"], "duplex"), (["chat"], None)],
)
def test_every_command_takes_a_task_and_a_timeout_below_a_second(words: list[str], task: str | None) -> None:
    assert parse(words, "client").task == task
    args = parse([*words, "--task", "other", "--timeout", "0.5"], "client")
    assert (args.command, args.task, args.timeout) == (words[0], "other", 0.5)


@pytest.mark.parametrize(("command", "task"), [("speak", "dialogue"), ("transcribe", "understand")])
async def test_command_sends_the_requested_task(run: CommandLine, tmp_path: Path, command: str, task: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    code, _, _ = await run([Chunk(0, None, text="a", is_final=True, is_last=True)], command, "a.wav", "--task", task)
    assert (code, run.requests[0]["task"]) == (0, task.encode())
    assert "options" not in run.requests[0]


@pytest.mark.parametrize(
    ("steps", "timeout", "code", "message"),
    [
        ([Abort(grpc.StatusCode.INVALID_ARGUMENT, "text: expected words")], "60", 2, "error: text: expected words\n"),
        ([Abort(grpc.StatusCode.INTERNAL, "decoder died")], "60", 1, "error: decoder died\n"),
        ([Abort(grpc.StatusCode.UNAVAILABLE, "server is draining")], "60", 3, "error: server is draining\n"),
        ([Pause(60)], "0.3", 4, "error: 127.0.0.1:PORT: the utterance was not complete after 0.3 s\n"),
    ],
)
async def test_client_command_failure_prints_one_line(
    run: CommandLine, steps: list[Step], timeout: str, code: int, message: str
) -> None:
    got_code, out, errors = await run(steps, "speak", "a", "--timeout", timeout)
    assert (got_code, out) == (code, "")
    assert re.sub(r"(?<=127\.0\.0\.1:)\d+", "PORT", errors) == message


def test_unreachable_server_exits_with_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speak", "a", "--server", "127.0.0.1:9", "--play", "off"]) == 3
    assert capsys.readouterr().err.startswith("error: no server answers at 127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["sing", "a"], "'sing'"),
        (["speak"], "text"),
        (["speak", "a", "--seed", "x"], "--seed"),
        (["speak", "a", "--options", "[]"], "--options: expected a JSON object, got '[]'"),
        (["speak", "a", "--options", "{"], "--options: expected a JSON object, got '{'"),
        (["speak", "a", "--timeout", "0"], "--timeout must be > 0 s, got 0"),
        (["speak", "a", "--timeout", "nan"], "--timeout must be > 0 s, got nan"),
        (["transcribe", "none.wav"], "there is no file none.wav"),
        (["chat", "--clone", "none.wav"], "there is no file none.wav"),
    ],
)
def test_usage_errors_exit_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_invalid_file_name_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speak", "a", "--out", "a.txt"]) == 2
    assert "a.txt" in capsys.readouterr().err


async def test_speak_clones_the_voice_of_a_recording(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "me.wav").write_bytes(b"RIFF")
    voice = ("--clone", "me.wav", "--clone-text", "It is me.")
    code, _, errors = await run(UTTERANCE, "speak", "a cat", *voice)
    assert (code, errors) == (0, "")
    turns = [{"role": "system", "audio": "audio", "text": "It is me."}, {"role": "user", "text": "a cat"}]
    assert json.loads(run.requests[0]["messages"]) == turns
    assert run.requests[0]["audio"] == b"RIFF"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--clone", "nobody.wav"), "there is no file nobody.wav"),
        (("--clone-text", "a"), "--clone-text: requires --clone FILE"),
        (("--clone", "me.wav", "--voice", "rms"), "--clone and --voice exclude each other"),
    ],
)
async def test_an_invalid_recording_is_refused(
    run: CommandLine, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "me.wav").write_bytes(b"RIFF")
    code, _, errors = await run(UTTERANCE, "speak", "a cat", *words)
    assert code == 2
    assert message in errors
    assert not run.requests
