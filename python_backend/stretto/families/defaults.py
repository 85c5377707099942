"""Sampling defaults of a checkpoint: `speech_sampling` in config.json, which override those of its family.

    {"audio": {"temperature": 0.7, "top_k": 30}, "depth": {"temperature": 0.8}, "repetition_penalty": 1.1}

`stretto convert` copies them from a release's generation_config.json. Options of a request override them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.families.base import Family
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling

KEY = "speech_sampling"
SEGMENTS, DRAWN = ("text", "audio"), ("temperature", "top_k", "top_p")
OTHERS = ("repetition_penalty", "min_p", "ras_window", "ras_max_repeats")


def with_defaults(family: Family, record: object) -> Family:
    """Return the family with the sampling defaults of `record` in every task.

    Args:
        family: Family with the defaults of its authors' code.
        record: Value of `speech_sampling`, or None.

    Raises:
        CheckpointError: If a value is invalid; the message names it.
    """
    if record is None:
        return family
    if not isinstance(record, Mapping):
        raise CheckpointError(f"config.json: {KEY}: expected an object, got {shown(record)}")
    for name, value in record.items():
        if name not in (*SEGMENTS, "depth", *OTHERS):
            raise CheckpointError(f"config.json: {KEY}: unknown {shown(name)}")
        if name in (*SEGMENTS, "depth") and not (isinstance(value, Mapping) and {*value} <= {*DRAWN}):
            raise CheckpointError(f"config.json: {KEY}.{name}: expected {', '.join(DRAWN)}, got {shown(value)}")
    try:
        tasks = tuple(replace(task, sampling=_over(task.sampling, record)) for task in family.tasks)
    except InvalidRequest as error:
        field = error.field.removeprefix("options.")
        raise CheckpointError(f"config.json: {KEY}.{field}: expected {error.expected}, got {error.got}") from error
    return replace(family, tasks=tasks)


def _over(defaults: SamplingConfig, record: Mapping[str, Any]) -> SamplingConfig:
    """Return the defaults of a task, overridden by `record`."""
    text, audio = (_segment(getattr(defaults, name), record.get(name, {})) for name in SEGMENTS)
    given, depth = record.get("depth"), defaults.depth
    if given is not None:
        depth = replace(depth or CodeSampling(audio.temperature, audio.top_k, audio.top_p), **given)
    others = {name: record[name] for name in OTHERS if name in record}
    return replace(defaults, text=text, audio=audio, depth=depth, **others)


def _segment(defaults: SegmentSampling, given: Mapping[str, Any]) -> SegmentSampling:
    """Return the defaults of a segment, overridden by `given`.

    A segment that a task generates greedily stays greedy.
    """
    is_greedy = defaults.temperature == 0
    return replace(defaults, **{name: value for name, value in given.items() if not (is_greedy and name == DRAWN[0])})
