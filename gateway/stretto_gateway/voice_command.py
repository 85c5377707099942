"""Command `stretto voices`, which manages a gateway's recorded voices in the gateway's own folder.

A running gateway picks up the changes immediately. Run the command as the gateway's user.
"""

import argparse
import asyncio
import json
import os
import pwd
import stat
import sys
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path

from stretto_client import ClientError, RecordedVoice, SpeechClient
from stretto_client.arguments import Parser
from stretto_client.console import argument_path, argument_text
from stretto_gateway.answers import ApiError
from stretto_gateway.catalogue import plain_name
from stretto_gateway.command import MIN_KEY_CHARS, VOICES, port_in_row
from stretto_gateway.config import Limits
from stretto_gateway.guard import Keys
from stretto_gateway.speech_request import MAX_REF_CHARS
from stretto_gateway.voice_file import MAX_HEADER_BYTES, read_voice, write_voice
from stretto_gateway.voice_store import EVERYBODY, UNFINISHED, StoredVoice, TooManyVoices, VoiceStore, write_whole
from stretto_gateway.voices import (
    MAX_CONSENT_CHARS,
    MAX_DESCRIPTION_CHARS,
    MAX_LABEL_CHARS,
    MAX_NAME_CHARS,
    SAMPLE,
    check_name,
    cloning_task,
    record,
)

PROG = "stretto voices"
MAX_KEY_FILE_BYTES = 4096


def arguments(words: list[str] | None = None, default_folder: Path | None = None) -> argparse.Namespace:
    """Return the command and its options; exit with status 2 if they are invalid.

    Args:
        default_folder: Folder to use if neither `--voices` nor STRETTO_VOICES gives one; None to require one.
    """
    parser = Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = store_options(default_folder)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", parents=[shared], help="store the voice of a recording")
    about = "wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac; - reads standard input"
    add.add_argument("recording", type=argument_path, metavar="FILE", help=about)
    add.add_argument("--name", type=argument_text, required=True, help="name of the voice")
    about = "how the speaker has given consent"
    add.add_argument("--consent", type=argument_text, required=True, metavar="TEXT", help=about)
    add.add_argument(
        "--text", type=argument_text, default="", help="transcript of the recording, for models that continue it"
    )
    add.add_argument("--language", type=argument_text, default="", help="name or code of the speaker's language")
    add.add_argument("--gender", type=argument_text, default="", help="the speaker's gender")
    add.add_argument("--description", type=argument_text, default="", help="sound and manner of the voice")
    export = commands.add_parser("export", parents=[shared], help="write a voice to a file, for another gateway")
    export.add_argument("voice", type=argument_text, metavar="NAME", help="name or id of the voice")
    about = "file to write, with the recording; it must not exist"
    export.add_argument("-o", "--out", type=argument_path, required=True, metavar="FILE", help=about)
    imports = commands.add_parser("import", parents=[shared], help="store the voice of a file that export has written")
    imports.add_argument("file", type=argument_path, metavar="FILE", help="the file; - reads standard input")
    for command in (add, imports):
        about = "server that tests the voice; default: this machine's"
        command.add_argument("--server", metavar="HOST:PORT", help=about)
        about = "store the voice without testing it on a server"
        command.add_argument("--untried", action="store_true", help=about)
    listing = commands.add_parser("list", parents=[shared], help="list voices, oldest first")
    listing.add_argument("--json", action="store_true", help="print a JSON object per line")
    remove = commands.add_parser("remove", parents=[shared], help="delete voices")
    remove.add_argument("id", nargs="+", metavar="ID", help="id of a voice, as printed by list")
    for command in (listing, remove):
        command.add_argument("--all-keys", action="store_true", help="voices of every key, for the operator")
    return parser.parse_args(words)


def store_options(default_folder: Path | None) -> Parser:
    """Return a parser with `--voices` and `--key-file`, for `parents=` of all subcommands."""
    shared = Parser(add_help=False)
    about = f"the gateway's folder; default: {VOICES}, or that of stretto serve --gateway"
    shared.add_argument(
        "--voices", type=argument_path, metavar="FOLDER", default=os.environ.get(VOICES) or default_folder, help=about
    )
    about = "file with the API key of the owner; default: a gateway without keys"
    shared.add_argument("--key-file", type=argument_path, metavar="FILE", help=about)
    return shared


def main(words: list[str] | None = None, default_folder: Path | None = None) -> int:
    """Run a command, and return the exit status.

    It is 0 for success, 1 for an unknown voice or a full store or disk, 2 for a rejected request, 3 without a server,
    and 4 after a timeout.
    """
    args = arguments(words, default_folder)
    try:
        store = VoiceStore(owned_folder(args.voices), Limits().max_voices)
        owner = read_owner(args.key_file)
        if args.command in KEYED:
            return KEYED[args.command](store, owner, args)
        owners = store.owners() if args.all_keys else [owner]
        return show(store, owners, args.json) if args.command == "list" else remove(store, owners, args.id)
    except TooManyVoices:
        return failed(f"there are {Limits().max_voices} voices of this key, which is the limit; remove one")
    except ClientError as error:
        return failed(str(error), error.exit_code)
    except ApiError as error:
        return failed(error.message, 2)
    except ValueError as error:
        return failed(str(error), 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return failed(f"{error.filename or args.voices}: {error.strerror}")


def failed(message: str, status: int = 1) -> int:
    """Print an error and return the exit status."""
    print(f"{PROG}: {message}", file=sys.stderr)
    return status


def owned_folder(folder: Path | None) -> Path:
    """Return the gateway's folder; raise ValueError if there is none, or it belongs to another user."""
    if folder is None:
        raise ValueError(f"--voices: expected a folder, because {VOICES} is not set, got none")
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        uid = folder.stat().st_uid
        owner = str(uid)
        with suppress(KeyError):  # the user has no name, as in a container
            owner = pwd.getpwuid(uid).pw_name
        raise ValueError(f"--voices: run this command as {owner!r}, who owns {folder}, so that the gateway can read it")
    return folder


def read_file(path: Path, flag: str, max_bytes: int) -> bytes:
    """Read a file, or a pipe that has a writer, such as `<(command)`; `-` is standard input.

    ValueError is raised if the file is empty, too large, a folder, a device, or a pipe without a writer.
    """
    descriptor = os.dup(0) if str(path) == "-" else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        head = b""
        is_readable = stat.S_ISREG(status.st_mode)
        if stat.S_ISFIFO(status.st_mode):
            try:
                head = os.read(descriptor, 1)
                is_readable = bool(head)
            except BlockingIOError:  # there is a writer
                is_readable = True
        if not is_readable:
            raise ValueError(f"{flag}: expected a regular file, got {path}")
        os.set_blocking(descriptor, True)
        data = head + file.read(max_bytes + 1)
    num_bytes = max(len(data), status.st_size)  # 0 for a pipe
    if not 0 < num_bytes <= max_bytes:
        raise ValueError(f"{flag}: expected a file of 1 to {max_bytes} bytes, got {path} of {num_bytes} bytes")
    return data


def read_owner(key_file: Path | None) -> str:
    """Return the owner of the voices: a digest of the key in the file, or EVERYBODY if there is no file."""
    if key_file is None:
        return EVERYBODY
    try:
        lines = read_file(key_file, "--key-file", MAX_KEY_FILE_BYTES).decode("ascii").splitlines()
    except UnicodeDecodeError:
        lines = []
    keys = [key for line in lines if (key := line.strip())]
    if len(keys) != 1 or len(keys[0]) < MIN_KEY_CHARS:
        got = f"{len(keys)} keys" if len(keys) != 1 else f"one of {len(keys[0])} characters"
        expected = f"one key of at least {MIN_KEY_CHARS} ASCII characters"
        raise ValueError(f"--key-file: expected {expected} in {key_file}, got {got}")
    return Keys(keys).owner(f"Bearer {keys[0]}")


def add(store: VoiceStore, owner: str, args: argparse.Namespace) -> int:
    """Store a voice once the server has generated audio with it, and print its id."""
    limits = {"--name": (args.name, 1, MAX_NAME_CHARS), "--consent": (args.consent, 1, MAX_CONSENT_CHARS)}
    limits |= {"--text": (args.text, 0, MAX_REF_CHARS), "--description": (args.description, 0, MAX_DESCRIPTION_CHARS)}
    limits |= {"--language": (args.language, 0, MAX_LABEL_CHARS), "--gender": (args.gender, 0, MAX_LABEL_CHARS)}
    for flag, (text, least, most) in limits.items():
        if not least <= len(text) <= most or not text.isprintable():
            raise ValueError(f"{flag}: expected {least} to {most} printable characters, got {text[:60]!r}")
    recording = read_file(args.recording, "FILE", Limits().max_voice_bytes)
    about = {"language": args.language, "gender": args.gender, "description": args.description}
    if not args.untried:
        asyncio.run(try_voice(address_of(args), args.name, RecordedVoice(recording, args.text)))
    print(store.add(owner, args.name, args.text, args.consent, recording, **about).id)
    return 0


def address_of(args: argparse.Namespace) -> str:
    """Return the address of the server that tests a voice."""
    return args.server or f"localhost:{port_in_row(1)}"


def export_voice(store: VoiceStore, owner: str, args: argparse.Namespace) -> int:
    """Write a voice to a file."""
    name = plain_name(args.voice)
    voices = [voice for voice in store.all(owner) if args.voice == voice.id or plain_name(voice.name) == name]
    if len(voices) > 1:
        expected = f"the id of one of your {len(voices)} voices with this name"
        raise ValueError(f"NAME: expected {expected}, got {args.voice[:60]!r}")
    stored = store.find(owner, voices[0].id) if voices else None
    if stored is None:
        return failed(f"no voice {args.voice[:60]!r}")
    if args.out.exists():
        raise ValueError(f"--out: expected a new file, got {args.out}, which exists")
    write_whole(args.out, args.out.with_name(f"{args.out.name}{UNFINISHED}"), write_voice(*stored))
    return 0


def import_voice(store: VoiceStore, owner: str, args: argparse.Namespace) -> int:
    """Store the voice of a file once the server has generated audio with it, and print its id."""
    max_bytes = Limits().max_voice_bytes
    header, recording = read_voice(read_file(args.file, "FILE", MAX_HEADER_BYTES + max_bytes), max_bytes)
    about = header.model_dump(include={"language", "gender", "description"})
    if not args.untried:
        asyncio.run(try_voice(address_of(args), header.name, RecordedVoice(recording, header.ref_text)))
    print(store.add(owner, header.name, header.ref_text, header.consent, recording, **about).id)
    return 0


KEYED: dict[str, Callable[[VoiceStore, str, argparse.Namespace], int]] = {
    "add": add,
    "export": export_voice,
    "import": import_voice,
}


async def try_voice(server: str, name: str, voice: RecordedVoice) -> None:
    """Generate the first audio with a voice; raise ClientError or ApiError if the model rejects it or its name."""
    async with SpeechClient(server) as client:
        profile = await client.profile()
        task = cloning_task(profile)
        check_name(profile, name)
        if voice.text and "text" not in task.system:
            raise ValueError("--text: expected no value (this model does not use the transcript of a recording)")
        async with aclosing(client.speak(SAMPLE, voice=voice)) as events:
            await anext(events, None)


def show(store: VoiceStore, owners: list[str], as_json: bool) -> int:
    """Print the voices of the given owners, without recordings or keys."""
    for owner in owners:
        for voice in store.all(owner):
            print(json.dumps(record(voice)) if as_json else line_of(voice))
    return 0


def line_of(voice: StoredVoice) -> str:
    """Return a line that describes a voice, with characters that a terminal could interpret escaped."""
    day = time.strftime("%Y-%m-%d", time.gmtime(voice.created_at))
    name, consent = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in s) for s in (voice.name, voice.consent))
    return f"{voice.id}  {day}  {name}  ({consent})"


def remove(store: VoiceStore, owners: list[str], ids: list[str]) -> int:
    """Delete voices; return 1 if one of them does not exist."""
    unknown = [voice_id for voice_id in ids if not any(store.remove(owner, voice_id) for owner in owners)]
    for voice_id in unknown:
        failed(f"no voice {voice_id[:60]!r}")
    return int(bool(unknown))
