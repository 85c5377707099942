"""The console command `stretto`: help, errors, and modules that it does not import."""

import argparse
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from stretto.cli import COMMANDS, USAGE, main
from stretto.launcher import background, config
from stretto.launcher.background import CannotServe
from stretto.launcher.installation import LaunchError
from stretto.releases.store import models_folder
from stretto_gateway import command as gateway
from stretto_gateway import voice_command
from tests.patience import PATIENCE_S
from tests.tiers import by_night

PRINT_IMPORTED = "import sys, atexit; atexit.register(lambda: print('imported', *sys.modules)); "


def imported_by(*words: str) -> set[str]:
    run = f"{PRINT_IMPORTED}from stretto.cli import main; sys.exit(main({list(words)!r}))"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return set(done.stdout.rpartition("imported ")[2].split())


def test_usage_lists_every_command() -> None:
    assert set(re.findall(r"^  ([a-z-]+) ", USAGE, re.MULTILINE)) == set(COMMANDS)


def test_help_prints_to_stdout_and_missing_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr() == (USAGE, "")
    assert main([]) == 2
    assert capsys.readouterr() == ("", USAGE)


@pytest.mark.parametrize(("word", "kind"), [("sing", "command"), ("--sing", "flag")])
def test_unknown_command_or_flag_prints_one_line(capsys: pytest.CaptureFixture[str], word: str, kind: str) -> None:
    assert main([word]) == 2
    assert capsys.readouterr() == ("", f"stretto: unknown {kind} '{word}'; stretto --help lists all commands\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["speak", "hello", "--sing"], "--sing"),
        (["speak"], "text"),
        (["transcribe", "/nowhere/a.wav"], "/nowhere/a.wav"),
        (["chat", "--timeout", "soon"], "soon"),
        (["serve", "model_repository"], "model_repository"),
        (["serve", "--http-port", "x"], "--http-port"),
        (["serve", "--status", "--sing"], "--sing"),
        (["ps", "--sing"], "--sing"),
        (["convert", "parrot"], "parrot"),
        (["make-repository", "--sing"], "--checkpoint"),
        (["families", "--sing"], "--sing"),
    ],
)
def test_usage_errors_are_one_line_with_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    output, errors = capsys.readouterr()
    assert (left.value.code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("stretto")
    assert named in errors


@pytest.mark.parametrize(
    "words",
    [
        *(["speak", "--help"], ["serve", "--status"]),
        *by_night(["--help"], ["chat", "--help"], ["ps"], ["families"]),
    ],
)
def test_light_commands_import_neither_torch_nor_vllm(words: list[str]) -> None:
    imported = imported_by(*words)
    assert "stretto.cli" in imported
    assert not imported & {"torch", "vllm", "transformers", "soundfile"}


def test_help_does_not_import_the_client() -> None:
    assert not imported_by("--help") & {"grpc", "numpy", "stretto_client"}


@pytest.mark.parametrize(("error", "code"), [(LaunchError("port 8000 is in use"), 1), (CannotServe("no vllm"), 3)])
def test_server_start_failure_prints_one_line_and_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: LaunchError, code: int
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(background, "ready_server", fail)
    assert main(["speak", "hello"]) == code
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_explicit_server_address_starts_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "ready_server", lambda: pytest.fail("a server was asked for"))
    assert main(["speak", "hello", "--server", "127.0.0.1:9", "--play", "off"]) == 3
    assert "no server answers at 127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "lacking", "extra"), [(["chat"], "tritonclient", "client"), (["convert", "opuslm"], "torch", "embedded")]
)
def test_missing_dependency_error_names_the_package_extra(words: list[str], lacking: str, extra: str) -> None:
    hide = f"import sys; sys.modules[{lacking!r}] = None; from stretto.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"stretto {words[0]}: ")
    assert f"{lacking}" in done.stderr
    assert f"the extra '{extra}' of this package" in done.stderr


def test_families_and_codecs_are_listed_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = version("stretto")
    assert main(["families"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["family", "csm", "stretto", own] in lines
    assert ["codec", "mimi", "stretto", own] in lines
    (tmp_path / "brook-1.5.dist-info").mkdir()
    (tmp_path / "brook-1.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: brook\nVersion: 1.5\n")
    (tmp_path / "brook-1.5.dist-info" / "entry_points.txt").write_text("[stretto.families]\nbrook = not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["families"]) == 1
    output, errors = capsys.readouterr()
    assert ["family", "brook", "brook", "1.5"] in [line.split() for line in output.splitlines()]
    assert errors.startswith("stretto families: brook: cannot import not_there: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("port", ["x", "0", "65533", "-1"])
def test_invalid_ports_are_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setenv("STRETTO_PORT", port)
    assert main(["speak", "hello"]) == 1
    assert main(["serve", "--status"]) == 1
    message = f"STRETTO_PORT: expected a port from 1 to 65532, got '{port}'"
    assert capsys.readouterr().err == f"error: {message}\n[serve] {message}\n"


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which `stretto` is the console command."""
    stretto = f'stretto() {{ {sys.executable} -m stretto "$@"; }}'
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    variables = kept | {"STRETTO_PORT": "9"} | environment
    return subprocess.run(
        ["bash", "-c", f"{stretto}; {line}"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("words", ["families", *by_night("--help", "chat --help", "serve --status", "convert --help")])
@pytest.mark.parametrize("unbuffered", ["", *by_night("1")])
def test_command_ends_silently_once_the_reader_has_left(words: str, unbuffered: str) -> None:
    buffering = {"PYTHONUNBUFFERED": unbuffered} if unbuffered else {}
    done = shell(f"exec 9> >(:); wait $!; stretto {words} >&9", **buffering)
    # argparse ignores errors of unbuffered streams
    assert done.returncode in ({0, 141} if unbuffered and "--help" in words else {141})
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("words", ["families", *by_night("--version", "serve --status", "chat --help")])
def test_output_to_a_full_disk_is_one_error(words: str) -> None:
    done = shell(f"stretto {words} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


HELPS = ["--help", *(f"{command} --help" for command in COMMANDS), "voices add --help", "convert aligner --help"]
HOSTILE = {"COLUMNS": "1", "TERM": "dumb", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("words", ["chat --help", *by_night(*sorted({*HELPS} - {"chat --help"}))])
def test_help_needs_neither_a_wide_terminal_nor_unicode(words: str) -> None:
    done = shell(f"stretto {words}", **HOSTILE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: stretto" if " " not in words else "usage:")


def test_warnings_are_no_errors_in_any_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, kept in (("error", ""), ("error::DeprecationWarning,ignore", "ignore"), ("e,always", "always")):
        monkeypatch.setenv("PYTHONWARNINGS", given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert main(["--version"]) == 0
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert os.environ["PYTHONWARNINGS"] == kept
    monkeypatch.setenv("PYTHONWARNINGS", "always")
    assert main(["--version"]) == 0
    assert os.environ["PYTHONWARNINGS"] == "always"


class Parsed(Exception):
    """Ends a command when it parses its command line."""


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all arguments of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from actions(each)
        else:
            yield action


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_home_folder_in_a_path_option_is_expanded(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers = list[argparse.ArgumentParser]()

    def parse(parser: argparse.ArgumentParser, words: object = None, namespace: object = None) -> None:
        parsers.append(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    monkeypatch.setenv("HOME", "/home/nobody-here")
    words = {"serve": ["--status"], "families": ["x"], "convert": ["tiny"]}.get(command, [])
    with suppress(Parsed):
        main([command, *words])
    for action in (each for parser in parsers for each in actions(parser)):
        assert action.type is not Path, action.option_strings
        if action.option_strings and action.metavar in ("FILE", "FOLDER"):
            assert callable(action.type), action.option_strings
            assert action.type("~/x") == Path("/home/nobody-here/x")


@pytest.mark.parametrize(
    ("variable", "read"),
    [
        ("STRETTO_MODELS", lambda: models_folder()),
        ("STRETTO_VOICES", lambda: gateway.arguments().parse_args([]).voices),
        ("STRETTO_VOICES", lambda: voice_command.store_options(None).parse_args([]).voices),
        ("STRETTO_TURN_MODEL", lambda: gateway.arguments().parse_args([]).turn_model),
        ("STRETTO_PRONUNCIATIONS", lambda: config.parser().parse_args([]).pronunciations),
    ],
)
def test_home_folder_in_a_path_variable_is_expanded(
    variable: str, read: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/nobody-here")
    monkeypatch.setenv(variable, "~/x")
    assert read() == Path("/home/nobody-here/x")


def test_unknown_home_folder_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRETTO_MODELS", "~nobody-here/models")
    assert main(["list"]) == 1
    assert capsys.readouterr().err.startswith("stretto list: STRETTO_MODELS: ~nobody-here/models: ")
    with pytest.raises(SystemExit):
        main(["gateway", "--voices=~nobody-here/x"])
    assert "--voices: ~nobody-here/x: " in capsys.readouterr().err
