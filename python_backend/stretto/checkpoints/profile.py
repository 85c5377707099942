"""What a client is told of the model: a parameter of the ensemble's config, which anybody may ask for."""

import json
from typing import Any

from stretto.families.base import Family, Task

PARAMETER = "profile"


def profile(family: Family, sample_rate: int) -> str:
    """The family for clients, as one line of JSON that a config can hold between single quotes.

    sample_rate: the codec's, in Hz. max_text_chars: of one request. times_words: whether events tell when words start.
    reads_live_text: whether a text may be written while it is spoken.
    """
    record = {
        "family": family.name,
        "sample_rate": sample_rate,
        "voices": list(family.voices),
        "max_text_chars": family.max_text_chars,
        "max_audio_s": family.max_audio_s,
        "times_words": family.script is not None,
        "reads_live_text": family.text_track is not None,
        "tasks": [_task(task) for task in family.tasks],
    }
    text = json.dumps(record)
    assert "'" not in text, f"{family.name}: a quote would end the parameter"
    assert "\\" not in text, f"{family.name}: a backslash would be read as an escape"
    return text


def _task(task: Task) -> dict[str, Any]:
    """What `Task` documents, as far as a client has a use for it."""
    return {
        "name": task.name,
        "needs": list(task.needs),
        "also": list(task.also),
        "speaks": task.speaks,
        "answers": task.answers,
        "has_history": task.has_history,
        "system": list(task.system),
    }
