"""Convert a published model (weights, config.yaml, a tokenizer) to a checkpoint directory that the server loads.

    stretto convert FAMILY --model model.pt --config config.yaml --tokenizer TOKENIZER --codec CODEC --out CHECKPOINT

The command writes config.json, model-0000N-of-0000M.safetensors with their index, the tokenizer's files, `codec/` and,
if requested, `ssl_tokenizer/`. It prints the SHA-256 of each file. Tensors are copied from file to file one at a time.
If the files do not match each other, the mismatch is reported and nothing is written. `stretto convert aligner --help`
describes models for word times.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from stretto.aligning.model import CONFIG, FILES, WEIGHTS, Aligner, check_config, read_alphabet
from stretto.convert.conversion import Conversion, fresh_directory, plan, write
from stretto.convert.release import DTYPES, audio_tokenizer_of, convertible
from stretto.errors import CheckpointError, CommandParser, argument_path
from stretto.family.audio_format import KEY
from stretto.family.conversion import Release
from stretto.family.plugin import NAME
from stretto.untrusted_files import json_object, released_file, without_keys

MAX_SHARD_GB = 4.0
ALIGNER = "aligner"
ALIGNER_HELP = """Convert a published CTC model in the wav2vec2 layout (config, labels, weights) to an aligner of words.

    stretto convert aligner --model FOLDER --out ALIGNER

The command checks that labels, configuration and weights match, and copies the files that the server needs. `stretto
make-repository --aligner ALIGNER` then creates a model repository whose replies can have word times.
"""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="stretto convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=convertible())
    add = parser.add_argument
    add(
        "--model",
        type=argument_path,
        required=True,
        help="model.pt, model.pth, 2epoch.pth, or safetensors files: one, their directory, or their index; for "
        "some families, the directory of the release",
    )
    add(
        "--config",
        type=argument_path,
        help="the release's config.yaml or config.json, if it has one; default: config.json, or the only YAML file, in "
        "the directory of the model's files",
    )
    add(
        "--tokenizer",
        type=argument_path,
        help="directory of the public tokenizer; default: the directory of the model's files",
    )
    add("--out", type=argument_path, required=True, help="directory to create")
    add("--codec", type=argument_path, help="directory of the codec's own release; copied to codec/")
    add(
        "--ssl-tokenizer",
        type=argument_path,
        help="directory of the audio tokenizer's own release, for families that read audio as codes; written to "
        "ssl_tokenizer/",
    )
    add("--codec-from-model", action="store_true", help="write codec/ from the copy in the model's files")
    add(
        "--backbone", type=argument_path, help="config.json of the backbone, if no published release uses that backbone"
    )
    add("--no-hearing", action="store_true", help="omit the networks that encode voice recordings")
    add("--dtype", choices=DTYPES, help="dtype of the tensors; default: as trained")
    add("--shard-gb", type=float, default=MAX_SHARD_GB, help=f"largest file in GB; default {MAX_SHARD_GB}")
    audio = parser.add_argument_group("audio encoder inside the model")
    audio.add_argument(
        "--audio-config",
        type=argument_path,
        help="config.json of the audio encoder, if it differs from the one named by the release",
    )
    audio.add_argument("--n-window", type=int, help="half the chunk length, in mel frames; default: as trained")
    audio.add_argument(
        "--n-window-infer", type=int, help="number of mel frames that attend to each other; default: as trained"
    )
    audio.add_argument("--no-normalize", action="store_true", help="do not normalise the loudness of waveforms")
    args = parser.parse_args(words)
    if not args.shard_gb > 0:
        parser.error(f"--shard-gb must be > 0, got {args.shard_gb:g}")
    return args


def release(args: argparse.Namespace) -> Release:
    """Return the release described by the command line."""
    audio = {"do_normalize": not args.no_normalize}
    audio |= {name: getattr(args, name) for name in ("n_window", "n_window_infer") if getattr(args, name) is not None}
    folder = args.model if args.model.is_dir() else args.model.parent
    return Release(
        family=args.family,
        model=args.model,
        config=args.config or config_in(folder),
        tokenizer=args.tokenizer or folder,
        codec=args.codec,
        ssl_tokenizer=args.ssl_tokenizer,
        keeps_codec=args.codec_from_model,
        backbone=args.backbone,
        audio_config=args.audio_config,
        audio=audio,
        dtype=args.dtype,
        keeps_recording_encoder=not args.no_hearing,
    )


def config_in(folder: Path) -> Path | None:
    """Return a release's config.json, or its only YAML file, or None; raise CheckpointError for a link out of it."""
    has_json = os.path.lexists(folder / "config.json")
    names = ["config.json"] if has_json else [path.name for path in folder.glob("*.yaml")]
    return released_file(folder, names[0]) if len(names) == 1 else None


def describe(conversion: Conversion) -> str:
    """Return a description of the files to be written, and of the tensors that are not used."""
    record = conversion.record
    lines = [
        *_sizes(conversion),
        *(f"{name}/: {line}" for name, model in conversion.nested.items() for line in (*_sizes(model), *model.notes)),
        *(f"not needed: {name}" for name in grouped(conversion.dropped)),
        *conversion.notes,
    ]
    if not conversion.has_codec:
        lines.append("codec/ is missing: the server needs it before it can speak (--codec)")
    has_no_encoder = KEY not in record and conversion.ssl_tokenizer is None
    if audio_tokenizer_of(record[NAME]) is not None and has_no_encoder:
        lines.append("no audio tokenizer: the server will accept audio only as codes (--ssl-tokenizer)")
    return "\n".join(lines)


def _sizes(conversion: Conversion) -> tuple[str, str]:
    record = conversion.record
    return (
        f"{record['architectures'][0]}, {record['vocab_size']} ids, {record['dtype']}",
        f"{len(conversion.entries)} tensors, {conversion.num_bytes / 1e6:,.1f} MB",
    )


def grouped(shapes: dict[str, list[int]]) -> list[str]:
    """Return one line per name prefix: a tensor's name and shape, or the number of tensors."""
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [
        f"{names[0]} {shapes[names[0]]}" if len(names) == 1 else f"{len(names)} tensors of {first}"
        for first, names in groups.items()
    ]


def convert_aligner(model: Path, out: Path) -> Aligner:
    """Convert a released wav2vec2 model to an aligner in the new or empty directory `out`, or raise CheckpointError."""
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


def aligner_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog=f"stretto convert {ALIGNER}",
        description=ALIGNER_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=argument_path, required=True, help="folder of the release")
    parser.add_argument("--out", type=argument_path, required=True, help="directory to create")
    return parser.parse_args(words)


def align(words: list[str] | None = None) -> int:
    """Convert a released model to an aligner; return 1 on failure."""
    args = aligner_arguments(words)
    try:
        alphabet = convert_aligner(args.model, args.out).alphabet
    except (CheckpointError, OSError) as error:
        print(f"stretto convert: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{len(alphabet.labels)} labels: {' '.join(sorted(alphabet.labels))}; blank {alphabet.blank}")
    return 0


def main(words: list[str] | None = None) -> int:
    """Convert a release; return 1 on failure."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == [ALIGNER]:
        return align(words[1:])
    args = arguments(words)
    try:
        conversion = plan(release(args))
        print(describe(conversion))
        columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=conversion.num_bytes)
            advance = lambda num_bytes: bar.update(task, advance=num_bytes)  # noqa: E731
            files = write(conversion, args.out, int(args.shard_gb * 1e9), advance)
    except BrokenPipeError:
        raise
    except (CheckpointError, OSError) as error:
        print(f"stretto convert: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file.sha256}  {file.name}  {file.num_bytes}")
    return 0
