"""Small converted Qwen3-TTS releases, and results of the authors' package."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lab.releases.random_qwen3_tts import small_config, write_release
from stretto.convert.command import main
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary
from stretto.families.qwen3_tts.prompt import ClonedVoice, RowWriter
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.prompting import PromptRows
from stretto.records.prompt import Prompt

WIDTHS = {"custom_voice": 64, "voice_design": 96, "base": 96}  # of `lab/authors/qwen3_tts_replies.py`
NUM_FRAMES = 23  # at most, of a reply of the fixture
# Each case: True if it is instructed, the voice, the language.
CASES: dict[str, dict[str, tuple[bool, str | None, str | None]]] = {
    "custom_voice": {
        "english": (False, "ryan", "english"),
        "auto, instructed": (True, "ryan", None),
        "dialect": (False, "eric", "chinese"),
    },
    "voice_design": {"designed": (True, None, "english")},
    "base": {
        "in context": (False, None, None),
        "in long context": (False, None, None),
        "x-vector": (False, None, "english"),
    },
}
REFERENCES = {"in context": "codes", "in long context": "long_codes"}  # name of a voice's codes in the fixture
FIXTURE = Path(__file__).parent / "data" / "qwen3_tts_replies.npz"
MODES = {"whole": False, "streaming": True}


def command(folder: Path, out: Path) -> list[str]:
    """Return the converter's arguments for a release."""
    files = ("--model", str(folder), "--config", str(folder / "config.json"), "--tokenizer", str(folder))
    return ["qwen3-tts", *files, "--out", str(out)]


def convert(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a small release to `folder`, convert it, and return the checkpoint."""
    release = write_release(folder / "release", small_config(kind, WIDTHS[kind], **changes))
    assert main(command(release, folder / "converted")) == 0
    return folder / "converted"


@cache
def fixture() -> dict[str, np.ndarray]:
    """Load the file that `lab/authors/qwen3_tts_replies.py` has written."""
    return dict(np.load(FIXTURE))


@dataclass(frozen=True)
class Case:
    """A fixture reply: codes [T, Q], and raw logits `first` [n, C + 1] and `others` [T, Q - 1, C]."""

    prompt: np.ndarray
    codes: np.ndarray
    first: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, label: str) -> "Case":
        return cls(*(fixture()[f"{label}/{name}"] for name in ("prompt", "codes", "first", "others")))


class Checkpoint:
    """A converted release and its cases."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = convert(folder, kind), kind
        self.family: Family = family_at(self.folder)
        self.vocabulary = Qwen3TtsVocabulary.from_record(config_at(self.folder)[VOCABULARY])

    def rows(self, name: str, is_streaming: bool) -> PromptRows:
        """Return the prompt rows of a case."""
        is_instructed, voice, language = CASES[self.kind][name]
        instruction = fixture()["instruction"].tolist() if is_instructed else []
        writer, recorded = RowWriter(self.family, self.vocabulary), self.voice(name)
        head = writer.head(instruction, recorded or voice, language)
        return writer.prompt(head, fixture()["words"].tolist(), is_streaming, recorded)

    def voice(self, name: str) -> ClonedVoice | None:
        """Return the voice that a case clones."""
        if self.kind != "base":
            return None
        if name not in REFERENCES:
            return ClonedVoice(fixture()["x_vector"])
        words = tuple(fixture()["reference_words"].tolist())
        return ClonedVoice(fixture()["x_vector"], words, fixture()[REFERENCES[name]])

    def prompt(self, name: str, is_streaming: bool) -> Prompt:
        """Return a greedy request for as many frames as the fixture has."""
        rows, sampling = self.rows(name, is_streaming), self.family.tasks[0].sampling
        audio = replace(sampling.audio, temperature=0.0, max_rows=NUM_FRAMES)
        return Prompt(
            "tts",
            rows.rows,
            replace(sampling, audio=audio, seed=0),
            audios=rows.audios,
            track=rows.track,
            num_reference_rows=rows.num_reference_rows,
        )

    def cases(self) -> dict[str, tuple[Prompt, Case]]:
        """Return all cases by name."""
        return {
            f"{name}/{mode}": (self.prompt(name, is_streaming), Case.of(f"{self.kind}/{name}/{mode}"))
            for name in CASES[self.kind]
            for mode, is_streaming in MODES.items()
        }

    def embedded(self, prompt: Prompt) -> np.ndarray:
        """Return the backbone's input for a prompt [P, H].

        Each row is the sum of its ids' embeddings without silent pads. An x-vector replaces one row, next to the text's
        pad.
        """
        weights = load_file(next(self.folder.glob("*.safetensors")))
        ids = torch.from_numpy(prompt.rows).long()
        is_silent = ids == self.family.layout.pad_id
        is_silent[:, 0] = False
        embedded = weights["model.embed_tokens.weight"][ids].masked_fill(is_silent[..., None], 0).sum(1)
        for audio in prompt.audios:
            embedded[audio.first_row] = torch.from_numpy(audio.features[0]) + weights["adaptor.pad"]
        return embedded.numpy()
