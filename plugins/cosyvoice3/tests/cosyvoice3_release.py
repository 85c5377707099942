"""Replies of the authors' CosyVoice 3 language model, and the engine's prompts for these replies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from plugins.cosyvoice3.lab.random_cosyvoice3 import KNOWN
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.prompting import Manner, Piece, PromptRows
from stretto.family.text import Subwords, TextTokenizer
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.testing.checkpoints import write_checkpoint
from stretto_cosyvoice3.prompt import CosyVoice3Template
from stretto_cosyvoice3.voices import NUM_MELS, X_VECTOR

EVERY: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "cosyvoice3_replies.json").read_text())[
    "replies"
]
# Replies to whole texts, and to texts that arrive token by token while they are spoken.
REPLIES = [reply for reply in EVERY if "live" not in reply]
LIVE = [reply for reply in EVERY if "live" in reply]


class Recorded:
    """Fake `RecordingEncoder` that returns a recording of the fixture for any samples."""

    def __init__(self, num_codes: int):
        self._size = num_codes

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the fixture's codes, mel frames and x-vector, float32 [N]."""
        codes = np.random.default_rng(self._size).integers(KNOWN.num_codes, size=self._size)
        return np.append(codes, np.zeros(self._size * FRAMES_PER_TOKEN * NUM_MELS + X_VECTOR)).astype(np.float32)


def written(checkpoint: Path, reply: dict[str, Any]) -> PromptRows:
    """Return the prompt that the template writes for a fixture reply."""
    family = family_at(checkpoint)
    known = KNOWN.from_record(config_at(checkpoint)[VOCABULARY])
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    template = CosyVoice3Template(family, known, subwords, Recorded(reply["num_codes"]))  # type: ignore[arg-type]
    voice = [Piece("system", "voice", pcm=np.zeros(24_000, np.float32))]
    words = [Piece("system", "words", text=reply["words"])] if reply["words"] else []
    pieces = (*voice, *words, Piece("user", "text", text=reply["text"]))
    return template.write(
        family.tasks[0], pieces, None, Manner(instruct=reply["instruct"], is_streaming="live" in reply)
    )


def prompt_of(checkpoint: Path, reply: dict[str, Any]) -> Prompt:
    """Return the engine's prompt for a fixture reply, with its sampling options."""
    rows, defaults = written(checkpoint, reply), family_at(checkpoint).tasks[0].sampling
    max_rows = reply["limit"] - len(rows.rows) if "live" in reply else defaults.audio.max_rows
    audio = SegmentSampling(1.0, reply.get("top_k", 25), reply.get("top_p", 0.8), max_rows=max_rows)
    drawn = SamplingConfig(defaults.text, audio, seed=reply["seed"], ras_window=defaults.ras_window, ras_max_repeats=1)
    return Prompt("tts", rows.rows, rows.limited(drawn), track=rows.track)


def codes_of(rows: list[list[int]]) -> list[int]:
    """Return the codes in the engine's rows, excluding the id that ends a reply."""
    return [row[0] - KNOWN.num_text_ids for row in rows if row[0] in KNOWN.codes]


def write_with_head(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """Write a random checkpoint whose head for codes and ends is part of the head for all ids."""
    path = write_checkpoint(folder, family, name, **shape) / "model.safetensors"
    weights = load_file(path)
    weights["audio_head.weight"] = weights["lm_head.weight"][family.layout.audio[0].start :].clone()
    save_file(weights, path)
    return folder
