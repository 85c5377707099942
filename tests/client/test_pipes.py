"""The command line in a shell: pipes instead of files, full disks, closed streams, and other encodings."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tests.client.conftest import CommandLine
from tests.client.fake_server import Chunk, FakeServer, Request, Step, Taken
from tests.patience import PATIENCE_S
from tests.tiers import by_night

pytestmark = pytest.mark.slow  # a process for each test
ROOT = Path(__file__).parents[2]
NUM_SAMPLES = 1920
LEVEL = np.full(640, 0.25, np.float32)
UTTERANCE: list[Step] = [Chunk(0, 640, words=("a", "cat")), Chunk(1, 1280, text="café", is_final=True, is_last=True)]
TEXT: list[Step] = [Chunk(0, None, text="café", is_final=True, is_last=True)]


@dataclass(frozen=True)
class Ended:
    """End of a shell command."""

    status: int
    output: bytes
    errors: str
    requests: list[Request]


Shell = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    """Return a function that runs a line of bash, in which `client` is the command line of a fake server's client."""
    servers: list[FakeServer] = []

    async def run(line: str, steps: list[Step] = UTTERANCE, **environment: str) -> Ended:
        servers.append(server := FakeServer(lambda request: [Taken(0)] if "session" in request else steps))
        address = await server.start()
        client = f'client() {{ {sys.executable} -m stretto_client "$@" --server {address}; }}'
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"{client}; {line}"),
            cwd=tmp_path,
            env={"PYTHONPATH": f"{ROOT / 'contract'}:{ROOT / 'client'}", "PATH": os.defpath} | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode is not None
        return Ended(process.returncode, output, errors.decode(), server.requests)

    yield run
    for server in servers:
        await server.stop()


def num_samples(path: Path) -> int:
    """Return the number of samples that FFmpeg decodes; encoders may add a frame at either end."""
    with av.open(path) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


FORMATS = [(".wav", 0), (".flac", 0), (".ogg", 1024), (".mp3", 2304)]


@pytest.mark.parametrize(("suffix", "margin"), [FORMATS[0], FORMATS[3], *by_night(*FORMATS[1:3])])
async def test_every_format_is_written_to_a_pipe(shell: Shell, tmp_path: Path, suffix: str, margin: int) -> None:
    (tmp_path / f"link{suffix}").symlink_to("/dev/stdout")
    ended = await shell(f"client speak a --play off --out link{suffix} | cat > piped{suffix}; exit ${{PIPESTATUS[0]}}")
    assert ended.status == 0
    assert ended.errors.startswith(f"link{suffix}: 0.12 s of audio"), "text is not mixed with samples"
    assert NUM_SAMPLES <= num_samples(tmp_path / f"piped{suffix}") + margin <= NUM_SAMPLES + 2 * margin


@pytest.mark.parametrize(
    "line",
    [
        "client speak a --out - | cat > a.wav",
        *by_night(
            "client speak a --out >(cat > b.wav; mv b.wav a.wav); while [ ! -e a.wav ]; do sleep 0.05; done",
            "mkfifo pipe.wav; cat pipe.wav > a.wav & client speak a --play off --out pipe.wav; wait",
            "client speak a --out /dev/stdout | cat > a.wav",
            "mkfifo pipe; cat pipe > a.wav & client speak a --play off --out pipe; wait",
        ),
    ],
)
async def test_wav_in_a_pipe_has_an_unknown_length(shell: Shell, tmp_path: Path, line: str) -> None:
    ended = await shell(line)
    data = (tmp_path / "a.wav").read_bytes()
    assert (data[:4], data[4:8], data[40:44], len(data)) == (b"RIFF", b"\xff" * 4, b"\xff" * 4, 44 + 2 * NUM_SAMPLES)
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == NUM_SAMPLES
    assert (ended.status, "Traceback" in ended.errors) == (0, False)


async def test_wav_on_a_redirected_standard_output_has_its_length(shell: Shell, tmp_path: Path) -> None:
    ended = await shell("client speak a --out - --json > a.wav && cat a.wav > all && client speak a --out - >> all")
    assert (ended.status, ended.output) == (0, b"")
    assert ended.errors.startswith('{"audio_s": 0.12')
    first, both = (tmp_path / "a.wav").read_bytes(), (tmp_path / "all").read_bytes()
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == NUM_SAMPLES
    assert int.from_bytes(first[40:44], "little") == 2 * NUM_SAMPLES
    assert both[: len(first)] == first, "a file that is appended to keeps its beginning"
    assert len(both) == 2 * len(first)


async def test_words_and_summary_follow_on_standard_error_if_samples_are_on_standard_output(shell: Shell) -> None:
    ended = await shell("client speak a --words --out -")
    assert (ended.status, ended.output[:4], len(ended.output)) == (0, b"RIFF", 44 + 2 * NUM_SAMPLES)
    first, second, summary = ended.errors.splitlines()
    assert [first.split()[-1], second.split()[-1], summary.split(":")[0]] == ["a", "cat", "standard output"]


async def test_talk_writes_samples_to_standard_output_and_text_to_standard_error(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    ended = await shell("client talk a.wav --out - | cat")
    assert len(ended.output) == 44 + 2 * NUM_SAMPLES
    assert ended.errors.startswith("café\n0.12 s of audio")


@pytest.mark.parametrize("suffix", [".wav", ".ogg", *by_night(".flac", ".mp3")])
async def test_a_full_disk_is_one_error(run: CommandLine, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").symlink_to("/dev/full")
    status, _, errors = await run(UTTERANCE, "speak", "a", "--out", f"a{suffix}")
    assert (status, errors) == (2, f"error: a{suffix}: No space left on device\n")


async def test_an_unwritable_file_is_one_error(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    for name in ("loop.wav", "loop.flac"):  # as root may write to any other file
        (tmp_path / name).symlink_to(name)
    for name, told in (
        ("folder.wav", "expected a file, got the folder folder.wav"),
        ("loop.wav", "loop.wav: Too many levels of symbolic links"),
        ("loop.flac", "loop.flac: Too many levels of symbolic links"),
    ):
        status, _, errors = await run(UTTERANCE, "speak", "a", "--out", name)
        assert (status, errors) == (2, f"error: {told}\n")


LEFT = "exec 9> >(:); wait $!;"  # the reader of the pipe 9 leaves before the command starts


@pytest.mark.parametrize(
    "line",
    [
        "client speak a --words --play off --out a.wav >&9",
        "client speak a --out - >&9",
        "ln -s /dev/fd/9 a.mp3; client speak a --play off --out a.mp3",
        *by_night(
            "client --help >&9",
            "client chat --play off >&9 <<< hello",
            "client speak a --play off --out a.wav >&9 2>&9",
            "client speak a --play off --out /dev/fd/9",
            "touch b.wav; client transcribe b.wav >&9",
        ),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", *by_night("1")])
async def test_command_ends_silently_once_the_reader_has_left(shell: Shell, line: str, unbuffered: str) -> None:
    ended = await shell(f"{LEFT} {line}", **{"PYTHONUNBUFFERED": unbuffered} if unbuffered else {})
    wanted = {0, 141} if "--help" in line else {141}  # argparse ignores errors of unbuffered streams
    assert ended.status in wanted
    assert "Traceback" not in ended.errors
    assert "Broken" not in ended.errors


@pytest.mark.parametrize(
    "line", ["client speak a --words --play off --out a.wav", *by_night("touch b.wav; client transcribe b.wav")]
)
async def test_text_to_a_full_disk_is_one_error(shell: Shell, line: str) -> None:
    ended = await shell(f"{line} > /dev/full")
    assert (ended.status, ended.errors) == (1, "error: standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("line", "status", "errors"),
    [
        ("client speak a --play off --out a.wav >&-", 0, ""),
        ("client speak - --play off --out a.wav <&-", 2, "error: standard input is closed\n"),
        (
            "client speak a --out - >&-",
            2,
            "error: --out -: standard output is closed; redirect it to a file or a pipe\n",
        ),
        *by_night(
            ("client speak a --play off --out a.wav <&- >&- 2>&-", 0, ""),
            ("client chat --play off <&-", 0, ""),
            ("client speak a --play off --out a.wav <&-", 0, ""),
            ("client speak a --play off --out a.wav 2>&-", 0, ""),
            ("client transcribe - <&-", 2, "error: standard input is closed\n"),
            ("client speak a --clone - <&-", 2, "error: standard input is closed\n"),
        ),
    ],
)
async def test_closed_streams(shell: Shell, tmp_path: Path, line: str, status: int, errors: str) -> None:
    ended = await shell(line)
    assert (ended.status, ended.errors) == (status, errors)
    if "a.wav" in line and not status:
        assert len(soundfile.read(tmp_path / "a.wav")[0]) == NUM_SAMPLES, "no message was written into the file"


RECORDINGS = [
    b"RIFF\0\0\0\0WAVE",
    b"RF64....",
    b"fLaC....",
    b"OggS....",
    b"ID3.....",
    b"\x1aE\xdf\xa3....",
    b"\0\0\0\x1cftyp",
]


@pytest.mark.parametrize("content", [RECORDINGS[0], *by_night(*RECORDINGS[1:])])
async def test_file_on_standard_input_is_transcribed(shell: Shell, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    for line in (
        "cat a | client transcribe -",
        "client transcribe - < a",
        "(head -c 2 a; sleep 0.1; tail -c +3 a) | client transcribe -",
    ):
        ended = await shell(line, TEXT)
        assert (ended.status, ended.output.decode()) == (0, "café\n")
        assert ended.requests[0]["audio"] == content


@pytest.mark.parametrize(
    "line",
    [
        "client transcribe <(cat a)",
        "client talk - --play off --out b.wav < a",
        *by_night(
            "mkfifo pipe; cat a > pipe & client transcribe pipe",
            "cat a | client speak a --clone - --play off --out b.wav",
            "cat a | client transcribe /dev/stdin",
            "client talk <(cat a) --play off --out b.wav",
            "client speak a --clone <(cat a) --play off --out b.wav",
        ),
    ],
)
async def test_recordings_are_read_from_pipes(shell: Shell, tmp_path: Path, line: str) -> None:
    (tmp_path / "a").write_bytes(RECORDINGS[0])
    ended = await shell(line)
    assert (ended.status, ended.requests[0]["audio"]) == (0, RECORDINGS[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("transcribe .", "expected a file, got the folder ."),
        (f"transcribe {'a' * 300}", f"{'a' * 300}: File name too long"),
        ("speak - --clone -", "--clone -: expected a file, because standard input is already read"),
        ("speak a --out nowhere/a.wav", "there is no folder nowhere"),
        ("speak a --clone .", "expected a file, got the folder ."),
        ("talk - --clone -", "--clone -: expected a file, because standard input is already read"),
    ],
)
async def test_an_unreadable_file_is_one_error(run: CommandLine, line: str, message: str) -> None:
    status, _, errors = await run(UTTERANCE, *line.split())
    assert (status, errors.count("\n"), run.requests) == (2, 1, [])
    assert message in errors


async def test_a_descriptor_that_is_not_open_is_one_error(shell: Shell) -> None:
    """In a process of its own, because this one may have opened the descriptor."""
    ended = await shell("client speak a --out /dev/fd/99")
    assert (ended.status, ended.errors.count("\n"), ended.requests) == (2, 1, [])
    assert "/dev/fd/99: Bad file descriptor" in ended.errors


LOCALES = [
    {},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
]
PRINTED = ["café", "café", r"caf\xe9", "café", r"caf\xe9"]
ENCODED = ["utf-8", "utf-8", "ascii", "latin-1", "ascii"]


CASES = [*zip(LOCALES, PRINTED, ENCODED, strict=True)]


@pytest.mark.parametrize(("environment", "text", "encoding"), [CASES[2], *by_night(*CASES[:2], *CASES[3:])])
async def test_transcript_is_printed_in_any_encoding(
    shell: Shell, tmp_path: Path, environment: dict[str, str], text: str, encoding: str
) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    ended = await shell("client transcribe a.wav", TEXT, **environment)
    assert (ended.status, ended.output) == (0, f"{text}\n".encode(encoding))


@pytest.mark.parametrize("environment", [LOCALES[2], *by_night(*LOCALES[:2], *LOCALES[3:])])
@pytest.mark.parametrize("encoding", ["utf-8", *by_night("utf-8-sig", "utf-16")])
async def test_text_is_read_in_any_locale(
    shell: Shell, tmp_path: Path, environment: dict[str, str], encoding: str
) -> None:
    (tmp_path / "text").write_bytes("Don’t, café.".encode(encoding))
    line = "client speak - --play off --out a.wav < text"
    ended = await shell(line, **environment)
    assert (ended.status, ended.requests[0]["text"].decode()) == (0, "Don’t, café.")
    if encoding == "utf-8":
        ended = await shell('client speak "$(cat text)" --play off --out a.wav', **environment)
        assert (ended.status, ended.requests[0]["text"].decode()) == (0, "Don’t, café.")


@pytest.mark.parametrize("environment", [LOCALES[2], *by_night(*LOCALES[:2], *LOCALES[3:])])
async def test_undecodable_text_is_refused_with_its_position(shell: Shell, environment: dict[str, str]) -> None:
    message = "can't decode byte 0xe9 at position 7 (line 2) as UTF-8"
    ended = await shell(r"printf 'Aha\ncaf\xe9.' > text; client speak - < text", **environment)
    assert (ended.status, ended.errors) == (2, f"error: standard input: {message}\n")
    for argument in ("text", "--clone-text"):
        words = "" if argument == "text" else "a --clone text --clone-text "
        ended = await shell(rf"touch text; client speak {words}$'Aha\ncaf\xe9.'", **environment)
        assert (ended.status, ended.requests) == (2, [])
        assert f"argument {argument}: {message}" in ended.errors


@pytest.mark.usefixtures("proxy_variables")
async def test_client_reaches_its_server_directly_despite_proxy_variables(run: CommandLine) -> None:
    status, _, errors = await run(UTTERANCE, "speak", "a", "--out", "a.wav")
    assert (status, errors) == (0, "")
