"""Small Bagpiper, OpusLM and dialogue models: codes and logits equal the reference; their suites test the schedules."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.engine.worker.predictors import StreamHeads
from stretto.family.base import Family
from stretto.family.text import SILENT
from stretto.records.chunk import Report
from stretto.records.prompt import Prompt
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import make_prompt, make_prompts, write_checkpoint
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Answer, Engine
from tests.reply_rows import chunks_in
from tests.small_vocabularies import FAMILIES

pytestmark = pytest.mark.engine

BACKBONES = {"bagpiper": "qwen3", "opuslm": "olmo2", "opuslm_dialogue": "llama"}
LENGTH = 160
REPORT = Report("stop", 1, 1, 1, 1, 1.0, 0, 0.0, None, 1.0)


class Checkpoint:
    """A small random checkpoint with the reference's cached replies.

    Attributes:
        lead: Smallest margin of a reference decision over its runner-up.
    """

    def __init__(self, folder: Path, name: str):
        self.family: Family = FAMILIES[name]
        backbone = BACKBONES[self.family.name]
        self.folder = write_checkpoint(folder, self.family, name, layers=2, backbone=backbone)
        self.reference = ReferenceModel(self.folder, self.family, LENGTH)
        self._replies: dict[int, list[list[int]]] = {}
        self.lead = math.inf

    def reply(self, prompt: Prompt, guess: list[list[int]]) -> list[list[int]]:
        """Return every row of the reference's reply."""
        key = hash((prompt.task, prompt.sampling, prompt.rows.tobytes()))
        if key not in self._replies:
            self._replies[key], lead = self.reference.reply(prompt, guess=guess)
            assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
            self.lead = min(self.lead, lead)
        return self._replies[key]

    @property
    def rules(self) -> SegmentRules:
        return SegmentRules(self.family, LENGTH)

    def check(self, prompts: dict[str, Prompt], answers: dict[str, Answer]) -> None:
        for request_id, prompt in prompts.items():
            answer = answers[request_id]
            assert answer.rows == self.reply(prompt, answer.rows), request_id
            codes = frames(self.family, audio_rows(self.family, prompt, answer.rows))
            is_guided = prompt.sampling.guidance_scale != 1.0
            assert answer.trailer.num_guided_frames == (codes.shape[1] if is_guided else 0), request_id
            assert np.array_equal(spoken(self.rules, prompt, answer.rows), codes), request_id


def audio_rows(family: Family, prompt: Prompt, rows: list[list[int]]) -> np.ndarray:
    """Return the rows of a reply from its first audio row, [n, S]."""
    segments = family.task(prompt.task).segments
    if Segment.AUDIO not in segments:
        return np.zeros((0, family.layout.num_output_streams), np.int64)
    start, last = 0, len(family.transition)
    if segments[0] is Segment.TEXT:
        leads = (
            start for start in range(len(rows)) if tuple(row[0] for row in rows[start:][:last]) == family.transition
        )
        start = next(leads) + last
    return np.array(rows[start:])


def frames(family: Family, rows: np.ndarray) -> np.ndarray:
    """The codes [K, T] of a reply's audio rows, by the published formulas: Bagpiper loses its last seven rows,
    OpusLM what follows the row that ends its audio; a pad becomes the nearest code."""
    if len(rows) == 0:
        return np.zeros((8, 0), np.int64)
    end = int(np.flatnonzero(rows[:, 0] == family.end_of_audio)[0])
    num_frames = max(0, end - 7) if family.name == "bagpiper" else end
    streams = range(8) if family.name == "bagpiper" else range(1, 9)
    first = [family.layout.audio[s].start for s in streams]
    delayed = [rows[s : s + num_frames, s] - start for s, start in zip(streams, first, strict=True)]
    return np.clip(np.stack(delayed), 0, family.layout.codebook_size - 1)


def spoken(rules: SegmentRules, prompt: Prompt, rows: list[list[int]]) -> np.ndarray:
    """Return the codes [K, T] that the engine outputs, for any chunks."""
    task = rules.family.task(prompt.task)
    utterance = Utterance(ReplyState.begin(rules, task, len(prompt.rows)), (), SILENT, Pacer(ChunkPolicy(1, 4)))
    marked = np.array([[NO_CHANGE, *row] for row in rows])
    chunks = [*chunks_in(utterance, marked), utterance.finish(REPORT)]
    assert utterance.reply.num_frames == utterance.num_sent_frames
    sent = [chunk.codes for chunk in chunks if chunk.codes is not None]
    return np.concatenate([np.zeros((8, 0), np.int64), *sent], 1)


# The dialogue by night: the suite of the family has its parity by day.
PUBLISHED = [
    pytest.param(key, id=family.name, marks=[pytest.mark.nightly] if family.name.endswith("dialogue") else [])
    for key, family in FAMILIES.items()
]


@pytest.fixture(scope="module", params=PUBLISHED)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(scope="module")
def roomy(checkpoint: Checkpoint) -> Iterator[Engine]:
    with Engine(checkpoint.folder, max_model_len=LENGTH, async_scheduling=True) as running:
        yield running
        assert running.is_clean()


def test_batched_replies_match_the_reference(checkpoint: Checkpoint, roomy: Engine) -> None:
    """Prompts cover greedy and seeded sampling, guidance, every task, and four lengths."""
    prompts = make_prompts(checkpoint.family, 15)
    checkpoint.check(prompts, roomy.run(prompts))


def with_lengths(prompt: Prompt, num_rows: int, text: int, audio: int) -> Prompt:
    """Return `prompt` cut to `num_rows`, with segments as long as possible."""
    sampling = replace(
        prompt.sampling,
        text=replace(prompt.sampling.text, min_rows=text, max_rows=text),
        audio=replace(prompt.sampling.audio, min_rows=audio, max_rows=audio),
    )
    return Prompt(prompt.task, prompt.rows[:num_rows], sampling)


@pytest.mark.nightly
def test_replies_ended_by_limits_deliver_their_complete_frames(checkpoint: Checkpoint, roomy: Engine) -> None:
    family = checkpoint.family
    task = next(task for task in family.tasks if Segment.AUDIO in task.segments)
    longest = make_prompt(family, 3, task.name)
    assert len(longest.rows) == 70
    cases = {
        "rows": with_lengths(longest, 20, text=9, audio=13),
        "few rows": with_lengths(longest, 20, text=2, audio=4),
        "model length": with_lengths(longest, 60, text=20, audio=200),
        "long text": with_lengths(longest, 60, text=200, audio=200),
    }
    answers = roomy.run(cases)
    checkpoint.check(cases, answers)
    lengths = {name: spoken(checkpoint.rules, prompt, answers[name].rows).shape[1] for name, prompt in cases.items()}
    begun, closing = {"rows": 13, "few rows": 4}, 7 if family.name == "bagpiper" else 0
    for name, num_rows in begun.items():
        assert lengths[name] == max(0, num_rows - closing)
        assert len(answers[name].rows) < LENGTH - 60
    assert 60 + len(answers["model length"].rows) == LENGTH
    if Segment.TEXT in task.segments:
        without_end = family.end_of_text is None  # capacity was reserved for an end row that is empty
        assert lengths["long text"] == 1 + without_end


class RecordedLogits:
    """Logits of an engine's heads by step, with the token ids of each stream."""

    def __init__(self, heads: StreamHeads, patch: pytest.MonkeyPatch):
        self.steps: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        text, first, codes = heads.text, heads.first, heads.raw_codes

        def record_text(hidden: torch.Tensor) -> torch.Tensor:
            self.steps.append([(heads.text_ids, text(hidden)[0].clone())])
            return text(hidden)

        def record_first(hidden: torch.Tensor) -> torch.Tensor:
            self.steps.append([(heads.first_ids, first(hidden)[0].clone())])
            return first(hidden)

        def record_codes(hidden: torch.Tensor) -> torch.Tensor:
            self.steps[-1] += list(zip(heads.codes, heads.shifted(codes(hidden), slice(None))[0].clone(), strict=True))
            return codes(hidden)

        for name, record in (("text", record_text), ("first", record_first), ("raw_codes", record_codes)):
            patch.setattr(heads, name, record)


def test_logits_of_every_stream_match_the_hugging_face_class(
    checkpoint: Checkpoint,
    roomy: Engine,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, float], None],
) -> None:
    """Hugging Face's class reads the whole reply in one pass; float32 logits agree to 3e-4."""
    heads, largest = roomy.core.model_executor.driver_worker.worker.model_runner.sampler._draw.heads, 0.0
    for index, task in enumerate(checkpoint.family.tasks):
        prompt = make_prompt(checkpoint.family, index + 3, task.name, guidance_scale=1.0)
        with monkeypatch.context() as patch:
            recorded = RecordedLogits(heads, patch)
            rows = roomy.run({"one": prompt})["one"].rows
        expected = checkpoint.reference.logits([*prompt.rows.tolist(), *rows[:-1]])[len(prompt.rows) - 1 :]
        assert len(recorded.steps) >= len(rows)
        for step, streams in zip(recorded.steps, expected, strict=False):
            for (token_ids, logits), wanted in zip(step, streams, strict=False):
                largest = max(largest, float((logits - wanted[token_ids]).abs().max()))
        num_streams = checkpoint.family.layout.num_output_streams if task.segments[-1] is Segment.AUDIO else 1
        assert max(len(step) for step in recorded.steps) == num_streams
    record_property("largest_difference", largest)
    record_property("smallest_lead", checkpoint.lead)
    assert largest <= 3e-4  # rounding: up to 1.7e-5 with the instructions of three processors


def test_sampled_and_forced_pads_follow_the_family(checkpoint: Checkpoint, roomy: Engine) -> None:
    """Bagpiper samples pads. OpusLM forces them until a stream has its frame, and again after the stream has ended."""
    family = checkpoint.family
    prompts = make_prompts(family, 15)
    prompts = {name: each for name, each in prompts.items() if Segment.AUDIO in family.task(each.task).segments}
    answers = roomy.run(prompts)
    warm_up, drained, skipped, closed = set[int](), set[int](), set[int](), set[int]()
    for name, prompt in prompts.items():
        rows = audio_rows(family, prompt, answers[name].rows)
        end = int(np.flatnonzero(rows[:, 0] == family.end_of_audio)[0])
        if prompt.delayed_tail is not None:
            for stream in range(1, rows.shape[1]):
                assert rows[:stream, stream].tolist() == prompt.delayed_tail[:stream, stream - 1].tolist()
            continue
        warm_up |= {int(rows[i, s]) for s in range(1, rows.shape[1]) for i in range(min(s, end))}
        behind = skipped if end >= prompt.sampling.audio.max_rows else drained
        behind |= {int(token) for token in rows[end + 1 : -1][:1, 0]}
        closed |= {int(rows[end + j, s]) for j in range(2, len(rows) - 1 - end) for s in range(j)}
        assert len(rows) - end - 1 == (0 if family.name == "bagpiper" else 8)
        assert rows[-1, 0] == family.end_of_reply
    if family.name == "bagpiper":
        assert family.layout.pad_id not in warm_up
        assert len(warm_up) > 8
    else:
        assert warm_up == {family.layout.pad_id}
        assert skipped == {family.layout.pad_id}, "behind an end that a limit put there nothing is drawn"
        assert family.layout.pad_id not in drained
        assert closed == {family.layout.pad_id}
