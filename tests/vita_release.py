"""Replies of VITA-Audio's own `generate`, and the converted small release with the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lab.releases import random_vita
from stretto.convert.command import main
from stretto.families.vita_audio.family import SCHEDULES
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "vita_audio_replies.json").read_text())


def command(release: Path, out: Path) -> list[str]:
    """Return the converter's command line for a release in a single directory."""
    places = {"model": release, "config": release / "config.json", "tokenizer": release, "out": out}
    return ["vita-audio", *(word for name, path in places.items() for word in (f"--{name}", str(path)))]


def convert(folder: Path) -> Path:
    """Write the small release of the fixture and convert it."""
    release = random_vita.write_release(folder / "release", RECORD["config"], RECORD["seed"])
    assert main(command(release, folder / "checkpoint")) == 0
    return folder / "checkpoint"


def prompt_of(reply: dict[str, Any], task: str = "dialogue", **changes: object) -> Prompt:
    """Return the prompt for a fixture reply, for the same number of ids."""
    size = len(reply["ids"])
    text = SegmentSampling(temperature=0.0, max_rows=size)
    name = reply["schedule"]
    schedule = name if name in SCHEDULES else tuple(RECORD["schedules"][name])
    fields = {"repetition_penalty": reply["penalty"], "schedule": schedule, **changes}
    sampling = SamplingConfig(text, text, seed=0, **fields)
    return Prompt(task, np.array(reply["prompt"], np.int32)[:, None], sampling)
