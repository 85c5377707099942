"""The options `output` and `chunking`: in which form and in what chunks a client wants its waveform."""

from dataclasses import replace
from typing import Any

from stretto.errors import InvalidRequest
from stretto.families.base import Family
from stretto.preprocessing.json_field import shown
from stretto.records.delivery import ENCODINGS, HIGHEST_RATE, LOWEST_RATE, Delivery, OutputForm
from stretto.records.ring_address import RingAddress
from stretto.streams.chunking import ChunkPolicy

OUTPUT, CHUNKING = "output", "chunking"
DELIVERY_KEYS = frozenset({OUTPUT, CHUNKING})
MAX_CHUNK_S = MAX_PLAYOUT_S = 10.0


def read_delivery(record: dict[str, Any], family: Family, frame_rate: float, held_frames: int) -> Delivery:
    """The delivery that the options in `record` ask for. frame_rate, held_frames: the codec's, as in ChunkPolicy.

    InvalidRequest names the option, what it may be and what came.
    """
    first, steady = family.first_chunk_frames, family.steady_chunk_frames
    default = ChunkPolicy(first, steady, frame_rate=frame_rate, held_frames=held_frames)
    output, policy = _object(record, OUTPUT, _OUTPUT), _policy(_object(record, CHUNKING, _CHUNKING), default)
    with_codes = output.get("codes", False)
    if not isinstance(with_codes, bool):
        raise InvalidRequest("options.output.codes", "true or false", shown(with_codes))
    return Delivery(_form(output), policy, with_codes)


_OUTPUT = frozenset({"encoding", "sample_rate", "ring", "codes"})
_CHUNKING = frozenset({"first_frames", "steady_frames", "playout_s"})


def _object(record: dict[str, Any], key: str, known: frozenset[str]) -> dict[str, Any]:
    value = record.get(key, {})
    if not isinstance(value, dict):
        raise InvalidRequest(f"options.{key}", "a JSON object", shown(value))
    for unknown in sorted(value.keys() - known):
        raise InvalidRequest(
            f"options.{key}.{shown(unknown)[1:-1]}", f"one of {', '.join(sorted(known))}", "an unknown key"
        )
    return value


def _form(record: dict[str, Any]) -> OutputForm:
    encoding = record.get("encoding", ENCODINGS[0])
    if encoding not in ENCODINGS:
        raise InvalidRequest("options.output.encoding", f"one of {', '.join(ENCODINGS)}", shown(encoding))
    sample_rate = ring = None
    if "sample_rate" in record:
        sample_rate = int(_within(record, "output.sample_rate", LOWEST_RATE, HIGHEST_RATE, int))
    if "ring" in record:
        ring = RingAddress.from_record(record["ring"])
    return OutputForm(encoding, sample_rate, ring)


def _policy(record: dict[str, Any], default: ChunkPolicy) -> ChunkPolicy:
    largest = max(1, int(MAX_CHUNK_S * default.frame_rate))
    steady, first, playout_s = default.steady_frames, default.first_frames, default.playout_s
    if "steady_frames" in record:
        steady = int(_within(record, "chunking.steady_frames", 1, largest, int))
        first = min(first, steady)
    if "first_frames" in record:
        first = int(_within(record, "chunking.first_frames", 1, steady, int))
    if "playout_s" in record:
        playout_s = float(_within(record, "chunking.playout_s", 0, MAX_PLAYOUT_S, int | float))
    return replace(default, first_frames=first, steady_frames=steady, playout_s=playout_s)


def _within(record: dict[str, Any], path: str, low: int, high: float, kind: Any) -> int | float:
    value = record[path.rpartition(".")[2]]
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "an integer" if kind is int else "a number"
        raise InvalidRequest(f"options.{path}", f"{what} in [{low}, {high:g}]", shown(value))
    return value
