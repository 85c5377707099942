"""Command `stretto pronunciations`, which imports, exports and removes dictionaries in a gateway's own folder.

A running gateway picks up the changes immediately. Run the command as the gateway's user.
"""

import argparse
import sys
from pathlib import Path

from stretto_client.arguments import Parser
from stretto_client.console import argument_path
from stretto_contract.lexicon_files import MAX_FILE_BYTES, read_lexicon, write_json, write_pls
from stretto_gateway.config import Limits
from stretto_gateway.pronunciation_store import PronunciationStore
from stretto_gateway.voice_command import owned_folder, read_file, read_owner, store_options

PROG = "stretto pronunciations"


def arguments(words: list[str] | None = None, default_folder: Path | None = None) -> argparse.Namespace:
    """Return the command and its options; exit with status 2 if they are invalid.

    Args:
        default_folder: Folder to use if neither `--voices` nor STRETTO_VOICES gives one; None to require one.
    """
    parser = Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = store_options(default_folder)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("import", parents=[shared], help="store a dictionary in place of the earlier one")
    add.add_argument("dictionary", type=argument_path, metavar="FILE", help="JSON or PLS; - reads standard input")
    export = commands.add_parser("export", parents=[shared], help="print the dictionary")
    export.add_argument("--format", choices=("json", "pls"), default="json", help="default: %(default)s")
    commands.add_parser("remove", parents=[shared], help="delete the dictionary")
    return parser.parse_args(words)


def main(words: list[str] | None = None, default_folder: Path | None = None) -> int:
    """Run a command; return 0, 1 for a failure or if there is no dictionary to delete, 2 for an invalid dictionary."""
    args = arguments(words, default_folder)
    limits = Limits()
    try:
        folder = owned_folder(args.voices)
        owner = read_owner(args.key_file)
        store = PronunciationStore(folder, limits.max_pronunciations, limits.max_dictionary_bytes)
        if args.command == "import":
            entries = read_lexicon(read_file(args.dictionary, "FILE", MAX_FILE_BYTES))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.replace(owner, entries)
            print(f"{len(entries)} entries")
        elif args.command == "export":
            print((write_pls if args.format == "pls" else write_json)(store.find(owner)), end="")
        elif not store.remove(owner):
            return failed("there is no dictionary", 1)
    except ValueError as error:
        return failed(str(error), 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return failed(f"{error.filename or args.voices}: {error.strerror}", 1)
    return 0


def failed(message: str, status: int) -> int:
    """Print an error and return the exit status."""
    print(f"{PROG}: {message}", file=sys.stderr)
    return status
