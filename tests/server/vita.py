"""Small VITA-Audio releases on a real server, and their expected replies.

Expected replies come from the recomputing reference, which other tests compare with the authors' `generate`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from lab.releases import random_vita
from lab.releases.random_glm4_voice import write_glm4_tokenizer, write_glm4_voice
from stretto.convert.command import main
from stretto.families.vita_audio.family import SCHEDULES
from stretto.family.plugin import family_at
from stretto.family.text import TextTokenizer, subword_codec
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from tests.reference.module_lm import ModuleReference
from tests.reference.vita_audio import NOTHING, VitaReference
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.listening import Answer
from tests.vita_release import command

NUM_IDS = 90
Hearing = Callable[[Path, Prompt], Mapping[int, Tensor]]


@dataclass(frozen=True)
class ServedVita(ServedCheckpoint):
    """A server, its checkpoint, and its expected replies.

    Attributes:
        hearing: Replacement for a prompt's rows, for a model with an audio encoder.
    """

    reference: VitaReference
    hearing: Hearing | None = None

    def answer(self, options: dict[str, Any], inputs: dict[str, Any]) -> tuple[str, list[int]]:
        """Return the text and codes of the expected reply; sampled requests must give a seed."""
        preprocessor = Preprocessor(self.checkpoint)
        prompt = preprocessor.prepare(RawRequest(**inputs, options=json.dumps(options)))
        ids = self._greedy(prompt) if prompt.sampling.text.temperature == 0 else self._drawn(prompt)
        ends, first = preprocessor.family.drawn_ends, preprocessor.family.layout.audio[0]
        ids = ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
        assert preprocessor.family.subwords is not None
        reader = subword_codec(TextTokenizer.at(self.checkpoint), preprocessor.family.subwords).reader(prompt.task)
        text = "".join(reader.push(token) for token in ids if token not in first) + reader.end()
        return text, [token - first.start for token in ids if token in first]

    def _greedy(self, prompt: Prompt) -> list[int]:
        schedule, penalty = SCHEDULES[prompt.sampling.schedule or "balance"], prompt.sampling.repetition_penalty
        heard = NOTHING if self.hearing is None else self.hearing(self.checkpoint, prompt)
        num_ids = min(NUM_IDS, prompt.sampling.text.max_rows)  # fewer for a transcript of a short recording
        return self.reference.reply(prompt.rows[:, 0].tolist(), schedule, num_ids, penalty, heard)

    def _drawn(self, prompt: Prompt) -> list[int]:
        rows, lead = ModuleReference.over(self.reference, family_at(self.checkpoint), 2048).reply(prompt)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        return [row[0] for row in rows]

    def speaks(self, options: dict[str, Any], inputs: dict[str, Any]) -> Answer:
        """Request a reply, and check its text, its codes and its duration."""
        options = {"text": {"max_rows": NUM_IDS}, "output": {"codes": True}} | options
        answer = self._ask(options, inputs)
        text, codes = self.answer(options, inputs)
        assert answer.text == text
        assert [code for event in answer.events for code in event.get("codes", [[]])[0]] == codes
        assert {event["segment"] for event in answer.events} == {"interleaved"}
        assert answer.report["num_frames"] == len(codes) > 4
        assert len(answer.pcm) / 22_050 == pytest.approx(len(codes) / 12.5, abs=0.1)
        assert np.abs(answer.pcm).max() > 0.001
        return answer

    def writes(self, options: dict[str, Any], inputs: dict[str, Any]) -> Answer:
        """Request a reply; check its text, and that it has no audio."""
        options = {"text": {"max_rows": NUM_IDS}} | options
        answer = self._ask(options, inputs)
        assert answer.text == self.answer(options, inputs)[0] != ""
        assert not answer.sounds
        return answer

    def _ask(self, options: dict[str, Any], inputs: dict[str, Any]) -> Answer:
        numbers = {name: np.array([value], np.int32) for name, value in inputs.items() if isinstance(value, int)}
        answer = self.server.ask(options, **inputs | numbers)
        assert answer.error is None
        return answer


@contextmanager
def serve(folder: Path, config: dict[str, Any], hearing: Hearing | None = None) -> Iterator[ServedVita]:
    """Write, convert and serve a release in `folder`; with `hearing`, without GLM-4-Voice's tokenizer."""
    release = random_vita.write_release(folder / "release", config)
    parts = ["--codec", str(write_glm4_voice(folder / "codec"))]
    if hearing is None:
        parts += ["--ssl-tokenizer", str(write_glm4_tokenizer(folder / "glm-4-voice-tokenizer"))]
    assert main([*command(release, folder / "checkpoint"), *parts]) == 0
    reference = VitaReference(random_vita.SMALL, random_vita.tensors(config, 1))
    with served_checkpoint(folder, folder / "checkpoint") as server:
        yield ServedVita(server, folder / "checkpoint", reference, hearing)
