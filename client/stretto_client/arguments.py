"""Command-line arguments of `speak`, `transcribe`, `talk` and `chat`."""

import argparse
import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from stretto_client.console import argument_text, described
from stretto_client.markup import MARKUPS

STANDARD_INPUT = Path("-")


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parse(argv: list[str] | None, prog: str) -> argparse.Namespace:
    """Return the command and its options; exit with status 2 if they are invalid."""
    parser = Parser(prog=prog, description="Speak, transcribe and talk through the server.")
    shared = Parser(add_help=False)
    shared.add_argument("--server", metavar="HOST:PORT", help="its gRPC port; default: this machine's server")
    shared.add_argument("--seed", type=int, help="the same seed gives the same codes; default: random, and reported")
    shared.add_argument("--options", type=json_object, default={}, metavar="JSON", help="any option of the server")
    shared.add_argument("--timeout", type=float, default=300.0, metavar="S", help="for the whole request")
    shared.add_argument("--json", action="store_true", help="print the summary as JSON")
    sound = Parser(add_help=False)
    about = "wav, flac, ogg or mp3; grows as audio arrives; - writes wav to standard output"
    sound.add_argument("--out", type=Path, metavar="FILE", help=about)
    sound.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    recording = Parser(add_help=False)
    kinds = "wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac"
    about = f"{kinds}; - reads one, or live 16-bit mono samples, from standard input"
    recording.add_argument("file", type=Path, help=about)
    recording.add_argument("--rate", type=int, default=24_000, metavar="HZ", help="of live samples; default: 24000")
    commands = parser.add_subparsers(dest="command", required=True)
    speak = commands.add_parser("speak", parents=[shared, sound], help="text to speech")
    speak.add_argument("text", type=argument_text, help="text to speak; - streams standard input")
    speak.add_argument("--task", default="tts", help="name of the model's task; default: tts")
    speak.add_argument("--voice", type=argument_text, help="a voice of the model")
    speak.add_argument(
        "--clone", type=Path, metavar="FILE", help="or the voice of a recording, if the model clones voices"
    )
    speak.add_argument(
        "--clone-text",
        type=argument_text,
        default="",
        metavar="TEXT",
        help="transcript of that recording; the speech continues it",
    )
    speak.add_argument("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="1 is unguided")
    speak.add_argument("--encoding", choices=["pcm_f32le", "pcm_s16le"], help="format of the samples on the wire")
    speak.add_argument("--sample-rate", type=int, metavar="HZ", help="resampled by the server; default: the codec's")
    speak.add_argument("--markup", choices=MARKUPS, default="none", help="markup that is not read aloud; default: none")
    speak.add_argument("--words", action="store_true", help="print each word and when it starts")
    transcribe = commands.add_parser("transcribe", parents=[shared, recording], help="speech to text")
    transcribe.add_argument("--task", default="asr", help="name of the model's task; default: asr")
    duplex = commands.add_parser("talk", parents=[shared, recording, sound], help="speech in and out at once")
    duplex.add_argument("--task", default="duplex", help="name of the model's task; default: duplex")
    about = "role of the model, if it accepts one"
    duplex.add_argument("--system", type=argument_text, default="", metavar="TEXT", help=about)
    duplex.add_argument("--voice", type=argument_text, help="a voice of the model")
    duplex.add_argument("--clone", type=Path, metavar="FILE", help="or the voice of a recording")
    talk = commands.add_parser("chat", parents=[shared], help="a conversation, line by line from standard input")
    talk.description = "A line is a turn: text, @FILE (audio, or codes in .npy), or @FILE text; end with Ctrl+D."
    talk.add_argument("--task", help="name of the model's task; default: the first that fits the turns")
    talk.add_argument("--system", type=argument_text, metavar="TEXT", help="system prompt")
    talk.add_argument("--clone", type=Path, metavar="FILE", help="the voice to answer in: audio, or codes in .npy")
    talk.add_argument(
        "--out-dir",
        type=Path,
        metavar="DIR",
        help="folder for reply-1.wav, …; default: the current one if no player is found",
    )
    talk.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    args = parser.parse_args(argv)
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
    if args.command == "speak" and (args.clone_text if args.clone is None else args.voice):
        parser.error("--clone-text: requires --clone FILE; --clone and --voice exclude each other")
    return args


def check_file(parser: Parser, path: Path) -> None:
    """Exit with status 2 unless the path is a file or a pipe."""
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
