"""Command-line arguments of `speak`, `transcribe`, `talk` and `chat`."""

import argparse
import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from stretto_client.console import argument_path, argument_text, described
from stretto_client.markup import MARKUPS
from stretto_contract.joins import JOINS
from stretto_contract.speech_checks import CHECKS

STANDARD_INPUT = Path("-")


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def request_options() -> Parser:
    """Return a parent parser with the options of every request."""
    parser = Parser(add_help=False)
    add = parser.add_argument
    add("--seed", type=int, help="the same seed gives the same codes; default: random, and reported")
    add("--options", type=json_object, default={}, metavar="JSON", help="any option of the server")
    add("--timeout", type=float, default=300.0, metavar="S", help="for the whole request")
    add("--json", action="store_true", help="print the summary as JSON")
    return parser


def sound_options() -> Parser:
    """Return a parent parser with the destinations of speech."""
    parser = Parser(add_help=False)
    about = "wav, flac, ogg or mp3; grows as audio arrives; - writes wav to standard output"
    parser.add_argument("--out", type=argument_path, metavar="FILE", help=about)
    parser.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    return parser


def voice_options() -> Parser:
    """Return a parent parser with the choice of a voice."""
    parser = Parser(add_help=False)
    parser.add_argument("--voice", type=argument_text, help="a voice of the model")
    about = "or the voice of a recording, if the model clones voices"
    parser.add_argument("--clone", type=argument_path, metavar="FILE", help=about)
    return parser


def speech_options() -> Parser:
    """Return a parent parser with the options of text to speech."""
    parser = Parser(add_help=False, parents=[voice_options()])
    add = parser.add_argument
    about = "transcript of that recording; the speech continues it"
    add("--clone-text", type=argument_text, default="", metavar="TEXT", help=about)
    add("--language", type=argument_text, metavar="NAME", help="language of the text, if the model has several")
    add("--instruct", type=argument_text, metavar="TEXT", help="how to speak, if the model takes instructions")
    add("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="1 is unguided")
    add("--encoding", choices=["pcm_f32le", "pcm_s16le"], help="format of the samples on the wire")
    add("--sample-rate", type=int, metavar="HZ", help="resampled by the server; default: the codec's")
    about = "measure the speech and report its faults (signals, the default), also compare its words (words), or off"
    add("--check", choices=CHECKS, default="signals", help=about)
    about = "recogniser for --check words: self, grpc://HOST:PORT or http://HOST:PORT/v1?model=NAME"
    add("--check-with", metavar="NAME", help=about)
    about = "least duration of speech in seconds that is held back until it is checked; default: 0"
    add("--hold", type=float, dest="hold_s", metavar="S", help=about)
    add("--join", choices=JOINS, default="independent", help="continued: clauses continue the speech before them")
    add("--markup", choices=MARKUPS, default="none", help="markup that is not read aloud; default: none")
    add("--words", action="store_true", help="print each word and when it starts")
    return parser


def recording_options() -> Parser:
    """Return a parent parser with the options of a recording."""
    parser = Parser(add_help=False)
    about = "of live samples; default: 24000"
    parser.add_argument("--rate", type=int, default=24_000, metavar="HZ", help=about)
    return parser


def role_options() -> Parser:
    """Return a parent parser with the role of a model in a conversation."""
    parser = Parser(add_help=False)
    about = "role of the model, if it accepts one"
    parser.add_argument("--system", type=argument_text, default="", metavar="TEXT", help=about)
    return parser


def parse(argv: list[str] | None, prog: str) -> argparse.Namespace:
    """Return the command and its options; exit with status 2 if they are invalid."""
    parser = Parser(prog=prog, description="Speak, transcribe and talk through the server.")
    shared = request_options()
    shared.add_argument("--server", metavar="HOST:PORT", help="its gRPC port; default: this machine's server")
    recording = recording_options()
    kinds = "wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac"
    about = f"{kinds}; - reads one, or live 16-bit mono samples, from standard input"
    recording.add_argument("file", type=argument_path, help=about)
    sound = sound_options()
    commands = parser.add_subparsers(dest="command", required=True)
    speak = commands.add_parser("speak", parents=[shared, sound, speech_options()], help="text to speech")
    speak.add_argument("text", type=argument_text, help="text to speak; - streams standard input")
    speak.add_argument("--task", default="tts", help="name of the model's task; default: tts")
    transcribe = commands.add_parser("transcribe", parents=[shared, recording], help="speech to text")
    transcribe.add_argument("--task", default="asr", help="name of the model's task; default: asr")
    parents = [shared, recording, sound, role_options(), voice_options()]
    duplex = commands.add_parser("talk", parents=parents, help="speech in and out at once")
    duplex.add_argument("--task", default="duplex", help="name of the model's task; default: duplex")
    talk = commands.add_parser("chat", parents=[shared], help="a conversation, line by line from standard input")
    talk.description = "A line is a turn: text, @FILE (audio, or codes in .npy), or @FILE text; end with Ctrl+D."
    talk.add_argument("--task", help="name of the model's task; default: the first that fits the turns")
    talk.add_argument("--system", type=argument_text, metavar="TEXT", help="system prompt")
    talk.add_argument(
        "--clone", type=argument_path, metavar="FILE", help="the voice to answer in: audio, or codes in .npy"
    )
    talk.add_argument(
        "--out-dir",
        type=argument_path,
        metavar="DIR",
        help="folder for reply-1.wav, …; default: the current one if no player is found",
    )
    talk.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 if options of a command contradict each other, or a file is missing."""
    if not args.timeout > 0:  # also rejects nan
        parser.error(f"--timeout must be > 0 s, got {args.timeout:g}")
    if "file" in args and args.file != STANDARD_INPUT:
        check_file(parser, args.file)
    if "clone" in args and args.clone is not None:
        if args.command == "talk" and args.voice:
            parser.error(f"--clone: expected a file, without --voice, got {args.clone}")
        if args.clone != STANDARD_INPUT:
            check_file(parser, args.clone)
        elif args.command == "chat" or "-" in (getattr(args, "text", ""), str(getattr(args, "file", ""))):
            parser.error("--clone -: expected a file, because standard input is already read")
    if args.command == "speak" and (args.check == "words") == (args.check_with is None):
        parser.error("--check words and --check-with NAME: expected both or neither")
    if args.command == "speak" and (args.clone_text if args.clone is None else args.voice):
        parser.error("--clone-text: requires --clone FILE; --clone and --voice exclude each other")


def check_file(parser: argparse.ArgumentParser, path: Path) -> None:
    """Exit with status 2 if the path is missing or a folder."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        parser.error(f"there is no file {path}" if is_missing else described(error))
    if is_folder:
        parser.error(f"expected a file, got the folder {path}")


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object, for argparse."""
    with suppress(ValueError, RecursionError):
        value = json.loads(argument_text(text))
        if isinstance(value, dict):
            return value
    raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
