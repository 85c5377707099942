"""Convert a published CTC model in the wav2vec2 layout (config, labels, weights) to an aligner for word times.

    stretto convert aligner --model FOLDER --out ALIGNER

The command checks that labels, configuration and weights match, and copies the files that the server needs. `stretto
make-repository --aligner ALIGNER` then creates a model repository whose replies can have word times.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from stretto.aligning.model import CONFIG, FILES, WEIGHTS, Aligner, check_config, read_alphabet
from stretto.convert.conversion import fresh_directory
from stretto.errors import CheckpointError, CommandParser, argument_path
from stretto.untrusted_files import json_object, released_file, without_keys

NAME = "aligner"


def convert(model: Path, out: Path) -> Aligner:
    """Convert a released model to an aligner, and return the aligner.

    Args:
        model: Folder of the release.
        out: Directory to create; it must be missing or empty.

    Raises:
        CheckpointError: If a file is missing, or does not have the wav2vec2 layout.
    """
    check_config(model)
    read_alphabet(model)
    with fresh_directory(out) as folder:
        for name in FILES:
            source = released_file(model, name)
            if name == WEIGHTS:
                shutil.copyfile(source, folder / name)
                continue
            record = json_object(source)
            record = without_keys(record) if name == CONFIG else record
            (folder / name).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return Aligner(folder)  # load the written files, as the server will


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog=f"stretto convert {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=argument_path, required=True, help="folder of the release")
    parser.add_argument("--out", type=argument_path, required=True, help="directory to create")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Convert a released model to an aligner; return 1 on failure."""
    args = arguments(words)
    try:
        alphabet = convert(args.model, args.out).alphabet
    except (CheckpointError, OSError) as error:
        print(f"stretto convert: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{len(alphabet.labels)} labels: {' '.join(sorted(alphabet.labels))}; blank {alphabet.blank}")
    return 0
