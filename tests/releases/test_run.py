"""`stretto run` without a server: what it serves or sends, where the audio goes, and its exit statuses."""

import os
import re
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from stretto.cli import main, speech_client
from stretto.launcher import background
from stretto.launcher.background import CannotServe
from stretto.launcher.installation import LaunchError
from stretto.launcher.options import ServedModel
from stretto.releases import run
from stretto.releases.install import Installer
from stretto.releases.messages import BadArgument, DoesNotFit, NotAllowed, ReleaseError, Unavailable
from stretto.releases.run import Devices, Served
from stretto.releases.store import InstalledModels, Request
from stretto_client import __main__ as client
from stretto_client import sinks
from tests.installed_models import ASR, CHAT, DUPLEX, TTS, install, profile, serve
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


@dataclass
class Command:
    """`stretto run` with an installed model whose server is never started.

    Attributes:
        folder: Folder of the installed models.
        state: Folder of pid files.
        sent: Arguments of each request.
        launched: Arguments of each launcher.
        devices: Devices of each model repository.
    """

    folder: Path
    state: Path
    sent: list[Namespace] = field(default_factory=list)
    launched: list[list[str]] = field(default_factory=list)
    devices: list[Devices] = field(default_factory=list)

    def __call__(self, *words: str, needs_server: bool = False) -> int:
        """Run the command, and return its exit status."""

        def perform(args: Namespace, address: Callable[[], str]) -> int:
            if needs_server:
                address()
            self.sent.append(args)
            return 0

        return run.main(list(words), replace(speech_client(), perform=perform))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return the command, with nothing installed, a closed standard input and a pipe as standard output."""
    found = Command(tmp_path / "models", tmp_path / "state")

    def launch(words: list[str]) -> int:
        found.launched.append(words)
        return 0

    monkeypatch.setenv("STRETTO_MODELS", str(found.folder))
    monkeypatch.setenv("STRETTO_PORT", "23000")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(run, "state_folder", lambda: found.state)
    monkeypatch.setattr(run, "require_installation", lambda: None)
    monkeypatch.setattr(background, "_listens", lambda port: False)
    monkeypatch.setattr(run.launcher, "main", launch)
    monkeypatch.setattr(sys, "__stdin__", None)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def voice(command: Command) -> Path:
    """Install acme/voice, and return its model repository."""
    return serve(install(command.folder))


def installed(command: Command, *tasks: dict[str, Any], name: str = "voice", **settings: Any) -> None:
    """Install a model with other tasks."""
    serve(install(command.folder, f"acme/{name}", **settings), profile(*tasks))


# ----- server or once


@pytest.fixture
def stdin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace standard input by the kind of file that the parameter names."""
    with ExitStack() as stack:
        kind: str = request.param
        if kind == "closed":
            yield
            return
        if kind == "pipe":
            reader, writer = os.pipe()
            stack.callback(os.close, writer)
        elif kind == "terminal":
            writer, reader = os.openpty()
            stack.callback(os.close, writer)
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            stack.enter_context(closing(ours))
            reader = theirs.detach()
        elif kind == "FIFO":
            os.mkfifo(tmp_path / "fifo")
            reader = os.open(tmp_path / "fifo", os.O_RDWR)
        else:
            if kind == "file":
                (tmp_path / "file").write_text("It is ten.")
            reader = os.open({"file": tmp_path / "file"}.get(kind, Path(kind)), os.O_RDONLY)
        file = stack.enter_context(os.fdopen(reader))
        monkeypatch.setattr(sys, "__stdin__", file)
        yield


INPUTS = ["closed", "pipe", "terminal", "socket", "FIFO", "file", "/dev/null"]
READ = {"pipe", "FIFO", "file"}


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("stdin", INPUTS, indirect=True)
def test_standard_input_decides_between_server_and_once(
    command: Command, stdin: None, request: pytest.FixtureRequest
) -> None:
    assert command("acme/voice") == 0
    is_once = request.node.callspec.params["stdin"] in READ
    assert [each.text for each in command.sent] == (["-"] if is_once else [])
    assert len(command.launched) == (0 if is_once else 1)


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("stdin", ["pipe", "terminal"], indirect=True)
def test_serve_forces_a_server(command: Command, stdin: None) -> None:
    assert command("acme/voice", "--serve") == 0
    assert (command.sent, len(command.launched)) == ([], 1)


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("stdin", ["pipe", "terminal"], indirect=True)
@pytest.mark.parametrize("text", ["It is ten.", "-"])
def test_text_is_spoken_once(command: Command, stdin: None, text: str) -> None:
    assert command("acme/voice", text) == 0
    assert [(each.command, each.text) for each in command.sent] == [("speak", text)]
    assert command.launched == []


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize(
    "words", [["--voice", "jean", "acme/voice", "It is ten."], ["acme/voice", "--voice", "jean", "-"]]
)
def test_options_stand_anywhere(command: Command, words: list[str]) -> None:
    assert command(*words) == 0
    assert [(each.voice, each.text) for each in command.sent] == [("jean", words[-1])]


# ----- launcher


def test_server_gets_ports_repository_and_passed_arguments(
    command: Command, voice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = ["--drain-seconds", "3"]
    assert command("acme/voice", "--port", "23100", "--address", "0.0.0.0", "--", *passed) == 0
    (words,) = command.launched
    assert words[: words.index("--address")] == [
        *("--http-port", "23100", "--grpc-port", "23101", "--metrics-port", "23102"),
        *("--pid-file", str(command.state / "server-23100.pid")),
        *("--log-file", str(command.state / "server-23100.log")),
        *("--gateway", "--gateway-port", "23103", "--model-repository", str(voice)),
    ]
    assert words[words.index("--address") :] == ["--address", "0.0.0.0", *passed]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[:2] == ["voices       alba, jean", "page         http://127.0.0.1:23103"]
    body = """{"model": "tiny", "voice": "alba", "input": "Hello."}"""
    assert f"curl http://127.0.0.1:23103/v1/audio/speech --json '{body}' -o hello.mp3\n" in said.err


@pytest.mark.usefixtures("voice")
def test_server_without_gateway_on_the_default_port(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("acme/voice", "--no-gateway") == 0
    (words,) = command.launched
    assert words[:2] == ["--http-port", "23000"]
    assert "--gateway" not in words
    assert "http" not in capsys.readouterr().err


def test_many_voices_are_not_all_printed(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"voice{number}" for number in range(20))
    serve(install(command.folder), profile(voices=names))
    assert command("acme/voice") == 0
    assert f"{', '.join(names[:8])} and 12 more\n" in capsys.readouterr().err


def write_pid_file(command: Command, model: ServedModel | None) -> None:
    """Pretend that this process is the launcher of a ready server."""
    path = command.state / "server-23000.pid"
    background.write(path, "ready", {"http": 23000, "gateway": 23003}, "/log", model=model)


def own_model(command: Command) -> ServedModel:
    (model,) = InstalledModels(command.folder).all()
    return ServedModel(model.manifest.name, model.manifest.key)


@pytest.mark.usefixtures("voice")
def test_running_server_of_the_same_model_is_used(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    write_pid_file(command, own_model(command))
    assert command("acme/voice", "It is ten.", needs_server=True) == 0
    assert command("acme/voice") == 0
    assert command.launched == []
    assert "running      on port 23000; stretto serve --stop stops it" in capsys.readouterr().err


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("words", [["It is ten."], []])
@pytest.mark.parametrize("model", [ServedModel("other", "0"), ServedModel("voice", "0"), None])
def test_server_of_another_model_is_never_replaced(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str], model: ServedModel | None
) -> None:
    write_pid_file(command, model)
    assert command("acme/voice", *words, needs_server=True) == 1
    name = "another model" if model is None else model.name
    assert capsys.readouterr().err == f"stretto run: port 23000 serves {name}: stretto serve --stop, or --port\n"
    assert (command.sent, command.launched) == ([], [])


@pytest.mark.usefixtures("voice")
def test_port_of_another_program_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_listens", lambda port: True)
    for words in (["It is ten."], []):
        assert command("acme/voice", *words, needs_server=True) == 1
        assert "port 23001 is in use by another program" in capsys.readouterr().err


# ----- output


@dataclass
class Terminal:
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.usefixtures("voice")
def test_output_goes_to_a_pipe_as_wav(command: Command) -> None:
    assert command("acme/voice", "It is ten.") == 0
    assert command("acme/voice", "It is ten.", "--out", "a.flac", "--play", "off") == 0
    assert [str(each.out) for each in command.sent] == ["-", "a.flac"]


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("has_player", [True, False])
def test_output_at_a_terminal_is_played_or_written_to_a_file(
    command: Command, monkeypatch: pytest.MonkeyPatch, has_player: bool
) -> None:
    player = sinks.FilePlayer("true") if has_player else None
    monkeypatch.setattr(client, "find_player", lambda: player)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert command("acme/voice", "It is ten.") == 0
    assert command("acme/voice", "It is ten.", "--play", "off") == 0
    played, silent = [client.open_sinks(args) for args in command.sent]
    assert [getattr(each, "name", None) for each in silent] == ["speech.wav"]
    assert (played == [player]) == has_player
    assert ([getattr(each, "name", None) for each in played] == ["speech.wav"]) != has_player


@pytest.mark.usefixtures("voice")
def test_wav_is_not_written_to_a_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert command("acme/voice", "It is ten.", "--out", "-") == 2
    assert "--out -: expected a pipe or a file as standard output, got a terminal" in capsys.readouterr().err
    assert command.sent == []


# ----- tasks and voices


@pytest.mark.parametrize(
    ("tasks", "words", "expected"),
    [
        ([TTS, ASR], ["It is ten."], ("speak", "tts")),
        ([TTS, ASR], ["a.wav", "--task", "asr"], ("transcribe", "asr")),
        ([ASR, TTS], ["a.wav"], ("transcribe", "asr")),
        ([ASR], ["-"], ("transcribe", "asr")),
        ([DUPLEX], ["a.wav"], ("talk", "duplex")),
        ([DUPLEX], ["-"], ("talk", "duplex")),
        ([{**TTS, "needs": ["text", "audio"]}], ["It is ten."], ("speak", "tts")),
    ],
)
def test_task_decides_the_request(
    command: Command, tasks: list[dict[str, Any]], words: list[str], expected: tuple[str, str]
) -> None:
    Path("a.wav").touch()
    installed(command, *tasks)
    assert command("acme/voice", *words) == 0
    (args,) = command.sent
    assert (args.command, args.task) == expected
    if args.command != "speak":
        assert args.file == Path(words[0])


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        (ASR, ["It is ten."], "voice transcribes: expected an audio file or -, got 'It is ten.'"),
        (ASR, ["a" * 5000], f"voice transcribes: expected an audio file or -, got '{'a' * 40}'"),
        (ASR, ["a\0b"], r"voice transcribes: expected an audio file or -, got 'a\x00b'"),
        (DUPLEX, ["none.wav"], "voice answers speech: expected an audio file or -, got 'none.wav'"),
        (CHAT, ["Hello."], "voice: task chat answers text with text: use stretto chat"),
        (TTS, ["Hello.", "--task", "asr"], "--task: expected one of tts, got 'asr'"),
        (TTS, ["Hello.", "--serve"], "--serve: expected no text"),
    ],
)
def test_request_that_the_model_cannot_answer_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str], task: dict[str, Any], words: list[str], message: str
) -> None:
    installed(command, task)
    assert command("acme/voice", *words) == 2
    assert capsys.readouterr().err == f"stretto run: {message}\n"
    assert (command.sent, command.launched) == ([], [])


@pytest.mark.parametrize(
    ("words", "voice"),
    [([], "jean"), (["--voice", "alba"], "alba"), (["--clone", "a.wav"], None)],
)
def test_default_voice_is_used_if_none_is_named(command: Command, words: list[str], voice: str | None) -> None:
    Path("a.wav").touch()
    installed(command, TTS, default_voice="jean")
    assert command("acme/voice", "It is ten.", *words) == 0
    assert [each.voice for each in command.sent] == [voice]


def test_default_voice_that_the_model_does_not_have_is_not_used(command: Command) -> None:
    installed(command, TTS, default_voice="nobody")
    assert command("acme/voice", "It is ten.") == 0
    assert [each.voice for each in command.sent] == [None]


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["It is ten.", "--clone", "none.wav"], "there is no file none.wav"),
        (["It is ten.", "--clone-text", "It"], "--clone-text: requires --clone FILE"),
        (["-", "--clone", "-"], "--clone -: expected a file"),
        (["It is ten.", "--port", "65533"], "expected a port from 1 to 65532, got '65533'"),
        (["It is ten.", "--gpu", "0", "--cpu"], "not allowed with argument --gpu"),
        (["It is ten.", "--with", "codec"], "expected KEY=VALUE, got 'codec'"),
        (["It is ten.", "--timeout", "0"], "--timeout must be > 0 s"),
        (["It is ten.", "--pla", "off"], "unrecognized arguments: --pla"),
        (["It is ten.", "--server", "localhost:1"], "unrecognized arguments: --server"),
    ],
)
def test_invalid_arguments_exit_with_2(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("acme/voice", *words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert command.sent == []


# ----- devices


def test_named_gpus_are_the_only_ones_that_the_server_sees(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.setenv(run.HELD_MB, "")
    monkeypatch.setattr(run, "held_mb", lambda gpu: 1000 + gpu)
    monkeypatch.setattr(Installer, "install", lambda self, target: model)
    monkeypatch.setattr(run, "device_of", lambda model, gpu, is_for_cpu: gpu)

    def served(model: Any, devices: Devices, *_: Any) -> Served:
        asked.append(devices)
        return Served(folder, profile())

    model = install(command.folder)
    folder = serve(model)
    monkeypatch.setattr(run, "served", served)
    words = ["--gpu", "2", "--codec-device", "5", "--quantize", "fp8", "--convolutions", "exact", "--mps"]
    assert command("acme/voice", *words) == 0
    assert asked == [Devices(2, 5, "fp8", "exact", True)]
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == ("2,5", "PCI_BUS_ID")
    assert os.environ[run.HELD_MB] == "1002"
    assert command("acme/voice", "--gpu", "2", "--quantize", "int8") == 2
    monkeypatch.setattr(run, "has_vnni", lambda: False)
    assert command("acme/voice", "--quantize", "int8") == 0
    assert asked[1:] == [Devices(quantize="int8")]
    assert "this processor has no VNNI; the weights stay as stored" in capsys.readouterr().err


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("option", ["--codec-device 1", "--quantize fp8", "--convolutions exact", "--mps"])
def test_options_of_gpus_are_refused_on_the_cpu(
    command: Command, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    words = option.split()
    assert command("acme/voice", "--cpu", *words) == 2
    assert words[0] in capsys.readouterr().err
    assert command.launched == []


# ----- exit statuses


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ReleaseError("x"), 1),
        (LaunchError("x"), 1),
        (BadArgument("x"), 2),
        (CannotServe("x"), 3),
        (Unavailable("x"), 5),
        (NotAllowed("x"), 6),
        (DoesNotFit("x"), 7),
    ],
)
def test_each_error_has_its_exit_status(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Installer, "install", fail)
    assert command("acme/voice", "It is ten.") == status
    assert capsys.readouterr().err == "stretto run: x\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["qwen-tts"], 5, "qwen-tts: no release of this name; did you mean"),
        (["acme/none"], 5, "acme/none is not installed (stretto pull acme/none)"),
        (["a/b/c"], 2, "expected a name, OWNER/NAME or an existing folder, got 'a/b/c'"),
        (["acme/voice", "--token-file", "none"], 2, "--token-file: none: No such file or directory\n"),
    ],
)
def test_release_that_cannot_be_found(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    assert command(*words) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("stretto run: ")
    assert said.count("\n") == 1


def test_model_without_a_server_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    installed(command, TTS, serves=False)
    assert command("acme/voice", "It is ten.") == 1
    assert main(["serve", "--model", "acme/voice"]) == 1
    message = "voice is converted, but no server for it exists"
    assert capsys.readouterr().err == f"stretto run: {message}\nstretto serve: {message}\n"
    assert command.launched == []


@pytest.mark.usefixtures("voice")
def test_missing_server_is_reported_before_anything_else(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(background, "CONTAINER_SERVER", Path("/nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command("acme/none", "It is ten.") == 3
    assert "the extra 'embedded' is not installed" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_reported(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is installed, but has no repository, and the folder of the locks cannot be made."""
    install(command.folder)
    (command.folder / ".locks").touch()
    assert command("acme/voice", "It is ten.") == 1
    message = f"{command.folder}/.locks: File exists; STRETTO_MODELS names another folder"
    assert capsys.readouterr().err == f"stretto run: {message}\n"


def test_invalid_port_in_the_environment_is_reported(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRETTO_PORT", "x")
    assert command("acme/voice") == 1
    assert capsys.readouterr().err == "stretto run: STRETTO_PORT: expected a port from 1 to 65532, got 'x'\n"


# ----- stretto serve --model


def test_serve_starts_an_installed_model_without_the_hub(command: Command, voice: Path) -> None:
    assert main(["serve", "--model", "acme/voice", "--gateway", "--http-port", "23200"]) == 0
    assert main(["serve", "--model=acme/voice"]) == 0
    own = ["--model-repository", str(voice)]
    assert command.launched == [[*own, "--gateway", "--http-port", "23200"], own]


def test_serve_never_downloads(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "acme/voice"]) == 5
    assert capsys.readouterr().err == "stretto serve: acme/voice is not installed (stretto pull acme/voice)\n"
    assert command.launched == []


# ----- the front process, and documentation


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize("text", ["'It is ten.'", ""])
def test_front_process_imports_neither_torch_nor_the_hub_library(command: Command, text: str) -> None:
    code = (
        "import sys; from dataclasses import replace; from stretto.cli import speech_client; "
        "from stretto.releases import run; run.launcher.main = lambda words: 0; "
        f"assert run.main(['acme/voice', {text}], replace(speech_client(), perform=lambda *_: 0)) == 0; "
        "print(*sys.modules)"
    )
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": PATIENCE_S}
    done = subprocess.run([sys.executable, "-c", code], check=True, **quiet)  # type: ignore[call-overload]
    imported = set(done.stdout.split())
    assert "stretto_client.client" in imported
    assert not imported & {"torch", "vllm", "transformers", "huggingface_hub", "safetensors"}


def test_documentation_names_every_option() -> None:
    """`docs/run.md` has the options of the installation and the server, `docs/using.md` those of requests."""
    parser = run.parser_of(speech_client())
    text = "".join((ROOT / "docs" / name).read_text() for name in ("run.md", "using.md"))
    options = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
    missing = {word for word in options - {"--help"} if not re.search(rf"{word}(?![\w-])", text)}
    assert not missing


def test_name_that_list_shows_is_served(command: Command) -> None:
    """The model was installed from a repository, a branch and a family that its name does not tell."""
    request = Request("acme/My_Voice", family="tiny", arguments=("--codec", "x"))
    serve(install(command.folder, request=request, name="my-voice", resolved={"v2": "2026"}))
    for text in ("my-voice", "My_Voice", "my voice", "my-voice:latest"):
        assert command(text, "--cpu", "--serve") == 0
    assert len(command.launched) == 4
    assert command("their-voice", "--cpu", "--serve") == 5


def test_listed_name_with_other_choices_is_installed_again(command: Command) -> None:
    request = Request("acme/My_Voice", family="tiny")
    serve(install(command.folder, request=request, name="my-voice"))
    assert command("my-voice", "--cpu", "--serve", "--revision", "v3") == 5, "only the hub has it"
    assert command.launched == []
