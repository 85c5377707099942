"""Profile of the served model for clients: a parameter of the ensemble's config."""

import json
from typing import Any

from stretto.families.base import Family, Task

PARAMETER = "profile"


def profile(family: Family, sample_rate: int, frame_rate: float) -> str:
    """Return the family's profile as one line of JSON that fits between single quotes in a config.

    Args:
        family: Family of the checkpoint.
        sample_rate: Sampling rate of the codec in Hz.
        frame_rate: Frames per second of the codec.
    """
    record = {
        "family": family.name,
        "sample_rate": sample_rate,
        "frame_rate": frame_rate,
        "voices": list(family.voices),
        "voice_titles": list(family.voice_titles),
        "languages": list(family.languages),
        "options": _options(family),
        "max_text_chars": family.max_text_chars,
        "max_audio_s": family.max_audio_s,
        "times_words": family.script is not None,
        "reads_live_text": family.text_track is not None,
        "tasks": [_task(task, family, frame_rate) for task in family.tasks],
    }
    text = json.dumps(record)
    assert "'" not in text, f"{family.name}: a quote would end the parameter"
    assert "\\" not in text, f"{family.name}: a backslash would be read as an escape"
    return text


def _task(task: Task, family: Family, frame_rate: float) -> dict[str, Any]:
    """Return the attributes of `Task` that are useful to clients."""
    num_closing_rows = family.tail.num_closing_rows(family.layout.max_delay)
    max_speech_s = (task.sampling.audio.max_rows - num_closing_rows) // family.rows_per_frame / frame_rate
    return {
        "name": task.name,
        "needs": list(task.needs),
        "also": list(task.also),
        "speaks": task.speaks,
        "answers": task.answers,
        "has_history": task.has_history,
        "system": list(task.system),
        "max_text_rows": task.sampling.text.max_rows,
        "max_speech_s": max_speech_s if task.has_audio_segment else 0.0,
    }


def _options(family: Family) -> list[str]:
    """Return the names of the options that this family accepts and some other family rejects."""
    taken = {
        "depth": family.depth is not None,
        "instruct": family.takes_instructions,
        "language": bool(family.languages),
        "repetition_penalty": family.penalized is not None,
        "schedule": family.bursts is not None,
        "text_mode": family.text_track is not None,
        "transliterate": family.reads_latin_only,
    }
    return [name for name, is_taken in taken.items() if is_taken]
