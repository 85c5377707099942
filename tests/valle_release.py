"""Replies of the authors' VALL-E, and the engine's prompts for these replies."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.random_espnet import KNOWN
from stretto.families.valle.prompt import ValleTemplate
from stretto.family.base import Family
from stretto.family.prompting import Piece
from stretto.family.text import Subwords, TextTokenizer
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from tests.fakes import FrameCounter

FIXTURE = Path(__file__).parent / "data" / "valle_replies.json"
REPLIES: list[dict[str, Any]] = json.loads(FIXTURE.read_text())["replies"]
GREEDY = SamplingConfig(SegmentSampling(temperature=0.0), SegmentSampling(temperature=0.0, max_rows=120), seed=1)


def open_valle(checkpoint: Path, family: Family) -> ValleTemplate:
    """Return the template for a converted checkpoint, for voices given as codes."""
    codec = FrameCounter(num_codebooks=KNOWN.num_codebooks, codebook_size=KNOWN.codebook_size)
    return ValleTemplate(family, KNOWN, Subwords(TextTokenizer.at(checkpoint), family), codec)


def rows_of(reply: dict[str, Any], template: ValleTemplate, family: Family) -> np.ndarray:
    """Return the rows of a reply's prompt as the template writes them."""
    voice = Piece("system", "messages[0]", codes=np.array(reply["voice"]))
    said = Piece("user", "messages[1].text", text=reply["text"])
    return template.write(family.tasks[0], (voice, said), None).rows


def prompt_of(reply: dict[str, Any], template: ValleTemplate, family: Family) -> Prompt:
    """Return the prompt for a fixture reply, with greedy sampling."""
    return Prompt("tts", rows_of(reply, template, family), GREEDY)
