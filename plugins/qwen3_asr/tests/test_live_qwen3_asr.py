"""Live transcripts of Qwen3-ASR equal those of the authors' streaming, computed with transformers' class."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from plugins.qwen3_asr.tests.published_qwen3_asr import ENDS, Processor, Theirs, speech, streamed
from plugins.qwen3_asr.tests.test_qwen3_asr import RATE, Recording, write
from stretto.errors import InvalidRequest
from stretto.family.text import TextTokenizer, load_text_codec
from stretto.preprocessing.request import RawRequest
from stretto.testing.limits import talk
from stretto.testing.releases import SmallRelease
from stretto_client.growing_transcript import GrowingTranscript
from stretto_client.produced_speech import Items
from stretto_client.speech_stream import SpeechEvent
from stretto_client.tries import once
from stretto_client.unread import UnreadAudio

NUM_IDS = 24
HEAD = "language English<asr_text>"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> SmallRelease:
    return SmallRelease.written(tmp_path_factory.mktemp("live") / "published", "1.7B", write)


class Spelling:
    """Greedy generation by transformers' class without ids that are no letters, so that few replies are the same."""

    def __init__(self, release: SmallRelease):
        self.release = release
        self.theirs = Theirs(release.size)
        self.processor = Processor(release.checkpoint)
        self.tokenizer = TextTokenizer.at(release.checkpoint)
        self.unused = [
            token_id
            for token_id in range(330)
            if token_id not in ENDS and not self.tokenizer.bytes_of(token_id).replace(b" ", b"").isalpha()
        ]

    def ids(self, pcm: np.ndarray, prompt: np.ndarray) -> list[int]:
        """Return the ids after a prompt [n]."""
        inputs = self.processor.inputs(pcm)
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        ids, _ = self.theirs.reply(
            inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, NUM_IDS, self.unused
        )
        return [token_id for token_id in ids if token_id not in ENDS]

    def authors(self, pcm: np.ndarray, beginning: str) -> str:
        """Return the text after a beginning, as the authors' code requests it."""
        tokenizer = self.processor.processor.tokenizer
        prompt = self.processor.inputs(pcm)["input_ids"][0].tolist() + tokenizer.encode(beginning)
        return str(tokenizer.decode(self.ids(pcm, np.array(prompt)), skip_special_tokens=True))

    def ours(self, pcm: np.ndarray, beginning: str) -> SpeechEvent:
        """Return the event of the whole reply to a request with the option `beginning`."""
        raw = talk({"role": "user", "audio": "pcm_in"}, beginning=beginning) | {"pcm_in": pcm, "sample_rate": RATE}
        prompt = self.release.preprocessor.prepare(RawRequest(**raw))
        reader: Any = load_text_codec(self.release.family, self.release.checkpoint).reader("asr")
        reader.begin(prompt.beginning)
        text = "".join(map(reader.push, self.ids(pcm, prompt.rows[:, 0]))) + reader.end()
        continuation = reader.continuation()
        report = {"continuation": {"beginning": continuation.beginning, "num_chars": continuation.num_chars}}
        return SpeechEvent(None, "", 0, "text", text, is_final=True, report=report)


class OneEvent:
    """Stream of one event."""

    def __init__(self, event: SpeechEvent):
        self._events = iter([event])

    async def __aenter__(self) -> "OneEvent":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> "OneEvent":
        return self

    async def __anext__(self) -> SpeechEvent:
        for event in self._events:
            return event
        raise StopAsyncIteration


@pytest.mark.parametrize("seconds", [9.0, 8.0])
async def test_transcripts_equal_those_of_the_authors_streaming(release: SmallRelease, seconds: float) -> None:
    spelling = Spelling(release)
    pcm = np.int16(32_767 * speech(seconds, 1))
    expected = streamed(spelling.authors, spelling.processor.processor.tokenizer, (pcm / 32_768).astype(np.float32))
    beginnings = [beginning for beginning, _ in expected]
    assert len(set(beginnings)) > 2
    assert all(after.startswith(before) for before, after in pairwise(beginnings))
    requests = list[tuple[str, str]]()

    def transcribe(samples: np.ndarray, beginning: str) -> Any:
        event = spelling.ours(samples, beginning)
        requests.append((beginning, event.text))
        return OneEvent(event)

    async def pieces() -> AsyncIterator[np.ndarray]:
        for start in range(0, len(pcm), 5_000):
            yield pcm[start : start + 5_000]

    items: Items = asyncio.Queue()
    await GrowingTranscript(transcribe, once, UnreadAudio(pieces(), RATE), items).follow()
    assert requests == expected
    events = [items.get_nowait() for _ in range(items.qsize())]
    assert "".join(event.text for event in events if isinstance(event, SpeechEvent)) == expected[-1][1]


@pytest.mark.parametrize(
    ("begun", "generated", "beginning", "kept"),
    [
        ("", HEAD + "hello userzzzzz", HEAD + "hello user", "hello user"),
        ("", "languagezzzzz", "language", ""),
        ("language", " English<asr_text>hello userzzzzz", HEAD + "hello user", "hello user"),
        (HEAD + "hello user", "", HEAD + "hello user", "hello user"),  # never less than before
        (HEAD + "hello", "你zz", HEAD + "hello", "hello"),
        ("", HEAD + "hello你zzz", HEAD + "hello", "hello"),  # the first byte of the character is left out, too
    ],
)
def test_last_tokens_and_incomplete_characters_stay_open(
    release: SmallRelease, begun: str, generated: str, beginning: str, kept: str
) -> None:
    tokenizer = TextTokenizer.at(release.checkpoint)
    reader: Any = load_text_codec(release.family, release.checkpoint).reader("asr")
    reader.begin(begun)
    text = "".join(map(reader.push, tokenizer.encode(generated))) + reader.end()
    assert text == (begun + generated).removeprefix(HEAD)
    continuation = reader.continuation()
    assert (continuation.beginning, text[: continuation.num_chars]) == (beginning, kept)


def test_plain_replies_report_no_continuation(release: SmallRelease) -> None:
    reader: Any = load_text_codec(release.family, release.checkpoint).reader("asr")
    assert reader.continuation() is None


def test_beginning_follows_the_language_of_the_request(release: SmallRelease) -> None:
    whole = Recording(speech(1.0), "english").inputs
    begun = whole | talk({"role": "user", "audio": "pcm_in"}, language="english", beginning=" hello")
    before, after = (release.preprocessor.prepare(RawRequest(**raw)).rows[:, 0].tolist() for raw in (whole, begun))
    assert after == before + TextTokenizer.at(release.checkpoint).encode(" hello")


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [("a" * 8_001, "at most 8000 characters, got 8001 characters"), ("a\ud800", "text without lone surrogates")],
)
def test_refused_beginnings(release: SmallRelease, beginning: str, expected: str) -> None:
    raw = talk({"role": "user", "audio": "pcm_in"}, beginning=beginning)
    with pytest.raises(InvalidRequest, match=f"options.beginning: expected {expected}"):
        release.preprocessor.prepare(RawRequest(**raw, pcm_in=speech(1.0), sample_rate=RATE))
