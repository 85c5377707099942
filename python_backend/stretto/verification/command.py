"""Command `stretto verify`: look for marks and tags of synthetic speech in audio files.

    stretto verify FILE... [--json]
    stretto verify -                   # reads one file from standard input

A tag is IPTC's digital source type among the file's metadata. A C2PA manifest names who signed the file; reading it
needs the package c2pa-python. The mark is that of `stretto serve --marker perth`; its detector needs the package
resemble-perth. No result is a proof that a recording is, or is not, of a person: marks can be removed and copied.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stretto.errors import CheckpointError, CommandParser, InvalidRequest
from stretto.preprocessing.audio import Recording
from stretto.preprocessing.audio_worker import AudioProcess, AudioProcessEnded
from stretto.preprocessing.file_size import MAX_FILE_BYTES

if TYPE_CHECKING:
    from stretto.verification.detector import Detector

PACKAGE = "perth"  # of the detector's weights
RATE = 32_000  # of the detector, in Hz
TAG = "digitalsourcetype"
WINDOW_S = 3
HOP_S = 1
# scores; of 800 unmarked recordings of people, none scored 0.7
MARKED = 0.7
UNMARKED = 0.3
MAX_S = 600.0


def open_detector() -> "Detector":
    """Return the detector; raise CheckpointError if it is not installed."""
    package = find_spec(PACKAGE)  # does not import it
    if package is None or not package.submodule_search_locations:
        raise CheckpointError("the detector is not installed: pip install resemble-perth --no-deps")
    from stretto.verification.detector import Detector  # imports torch

    return Detector.load(Path(package.submodule_search_locations[0]))


def windows(pcm: np.ndarray, detector: "Detector") -> Iterator[dict[str, Any]]:
    """Yield the score of each window of mono samples at RATE, float32 [n], with its start and end in seconds."""
    last = max(0, len(pcm) - WINDOW_S * RATE)
    for begin in dict.fromkeys([*range(0, last, HOP_S * RATE), last]):
        samples = pcm[begin : begin + WINDOW_S * RATE]
        score = detector.score(samples)
        end_s = round((begin + len(samples)) / RATE, 3)
        yield {"start_s": round(begin / RATE, 3), "end_s": end_s, "score": score and round(score, 4)}


def verdict(judged: list[dict[str, Any]]) -> str:
    """Return a summary of the judged windows of a recording."""
    scores = [window["score"] for window in judged if window["score"] is not None]
    if not scores:
        return "nothing to judge"
    if max(scores) >= MARKED:
        return "mark found"
    return "no mark found" if max(scores) <= UNMARKED else "uncertain"


def marked_s(judged: list[dict[str, Any]]) -> float:
    """Return the duration that marked windows cover, in seconds."""
    total = reached = 0.0
    for window in judged:
        if window["score"] is not None and window["score"] >= MARKED:
            total += window["end_s"] - max(reached, window["start_s"])
            reached = window["end_s"]
    return round(total, 3)


def verify(data: bytes, audio: AudioProcess, detector: "Detector | None") -> dict[str, Any]:
    """Return the findings about a file; without a detector, its mark is not checked."""
    pcm = audio.read(Recording("file", data), MAX_S, RATE)
    record: dict[str, Any] = {"metadata": {"digital_source_type": audio.tag(data, TAG)}}
    if detector is None:
        return record | {"mark": {"detector": None, "verdict": "not checked"}}
    judged = list(windows(pcm, detector))
    mark = {"detector": detector.name, "verdict": verdict(judged), "marked_s": marked_s(judged), "windows": judged}
    return record | {"mark": mark}


def described(record: dict[str, Any]) -> str:
    """Return the findings about a file as text."""
    source = record["metadata"]["digital_source_type"]
    mark = record["mark"]
    tag = "no tag" if source is None else f"tag {source.rpartition('/')[2]}"
    after = f" ({mark['marked_s']:g} s)" if mark.get("marked_s") else ""
    prefix = "mark " if mark["verdict"] == "not checked" else ""
    return f"{tag}; {prefix}{mark['verdict']}{after}{described_manifest(record.get('manifest'))}"


def described_manifest(manifest: dict[str, Any] | None) -> str:
    """Return the findings about a manifest as text; empty if there is none."""
    if manifest is None:
        return ""
    validity = f"not valid ({', '.join(manifest['failures'])})" if manifest["failures"] else "valid"
    signer = "" if manifest["signer"] is None else f", signed by {manifest['signer']!a}"
    receipt = "" if manifest["key"] is None else f", with a receipt of the key {manifest['key']}"
    return f"; manifest {validity}{signer}{receipt}"


def contents(name: str) -> bytes:
    """Return the contents of a file, or of standard input for `-`."""
    if name == "-":
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest("file", f"at most {MAX_FILE_BYTES} bytes", "more")
    return data


def compared_samples(clip: bytes, pcm: np.ndarray, sample_rate: int, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an audio file's samples and `pcm`, float32 [n], mono at `rate` Hz; raise InvalidRequest if unreadable."""
    with closing(AudioProcess()) as audio:
        file = audio.read(Recording("clip", clip), MAX_S, rate)
        return file, audio.read(Recording("speech", pcm, False, sample_rate), MAX_S, rate)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(prog="stretto verify", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio file, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file, with all windows")
    return parser.parse_args(words)


def main(
    words: list[str] | None = None, manifest_record: Callable[[bytes], dict[str, Any] | None] = lambda data: None
) -> int:
    """Run the command and return its exit code: 0, or 2 if a file could not be read.

    Args:
        manifest_record: Function that returns the findings about a file's C2PA manifest: `signer`, `key`, `failures`.
    """
    args = arguments(words)
    try:
        detector: Detector | None = open_detector()
    except CheckpointError as error:
        detector = None
        print(f"stretto verify: {error}", file=sys.stderr)
    code = 0
    with closing(AudioProcess()) as audio:
        for name in args.files:
            try:
                data = contents(name)
                record = verify(data, audio, detector) | {"manifest": manifest_record(data)}
            except (InvalidRequest, AudioProcessEnded, OSError) as error:
                print(f"stretto verify: {name}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
                code = 2
                continue
            print(json.dumps({"file": name} | record) if args.json else f"{name}: {described(record)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
