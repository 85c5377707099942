"""Words have their places in the text that the user has written."""

from typing import Any

import pytest

from stretto_client import SpeechClient, SpeechEvent, Word
from stretto_client.long_speech import split
from stretto_client.markup import Markup, read_text
from stretto_client.places import Places
from tests.client.fake_server import Chunk, FakeServer, Request, Step
from tests.client.reading import cut, read, written
from tests.client.test_live_speech import Live

TEXTS = {
    "It costs $3.50 at 7:30, doesn’t it?": ["It", "costs", "$3.50", "at", "7:30", "doesn’t", "it"],
    "Title\n\n**Note:** a _long_ text": ["Title", "Note", "a", "long", "text"],
    "<think>a long text</think>A long <b>text</b>, a": ["A", "long", "text", "a"],
    "See [a page](http://a/page) &amp; a map": ["See", "a", "page", "a", "map"],
    "- a\n- b\n\n| a | b |\n|---|---|\n| c | a |": ["a", "b", "a", "b", "c", "a"],
    "`code` 😀 ~~gone~~ <speech>over</speech> there": ["code", "gone", "over", "there"],
    '<speak>One <break time="1s"/><p>two</p> <sub alias="x">y</sub> three</speak>': ["One", "two", "three"],
}


def timed(text: str) -> tuple[Word, ...]:
    """Return the words of a text, with their places in it."""
    words, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        word = word.strip(",.?:。")
        words += [Word(word, 0.0, text_start=start, text_end=start + len(word))] if word else []
    return tuple(words)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
async def test_words_have_places_in_the_source(text: str) -> None:
    parts = [part for part in await read_text(text, "auto") if isinstance(part, str)]
    for max_chars in (1000, 12):
        places, found = Places(text), list[tuple[str, str, int]]()
        for clause in (clause for part in parts for clause in split(part, max_chars)):
            event = SpeechEvent(None, "u", 0, "audio", words=timed(clause))
            words = places.find(clause).moved(event).words
            placed = [(word.word, word.text_start, word.text_end) for word in words]
            found += [(word, text[start:end], start) for word, start, end in placed if start is not None]
        starts = [start for _, _, start in found]
        assert starts == sorted(set(starts))
        assert [word for word, *_ in found] == [shown for _, shown, _ in found] == TEXTS[text]


def test_marks_within_a_word_belong_to_it() -> None:
    text = "an un**believ**able story"
    spoken = read(text)
    event = Places(text).find(spoken).moved(SpeechEvent(None, "u", 0, "audio", words=timed(spoken)))
    assert [text[word.text_start : word.text_end] for word in event.words] == ["an", "un**believ**able", "story"]


LONG = "Nine birds sat on the wall. " * 8 + "It costs $3.50\nat **nine** o'clock, and the <b>wall</b> is *high*"


def records(text: str) -> list[dict[str, Any]]:
    """Return the words of a text as in an event."""
    names = ("word", "start_s", "text_start", "text_end")
    return [{name: getattr(word, name) for name in names} for word in timed(text)]


def answer(request: Request) -> list[Step]:
    return [
        Chunk(0, 640, more={"words": records(request["text"].decode())}),
        Chunk(1, 640, is_final=True, is_last=True),
    ]


@pytest.mark.parametrize("size", [0, 1, 7, 100])
async def test_clauses_have_places_in_the_whole_text(size: int) -> None:
    server = FakeServer(answer)
    async with SpeechClient(await server.start()) as client:
        source = written(*cut(LONG, [size])) if size else LONG
        events = [event async for event in client.speak(source, markup="auto")]
    await server.stop()
    words = [word for event in events for word in event.words]
    assert len(server.requests) > 1
    assert [word.word for word in words[:6]] == ["Nine", "birds", "sat", "on", "the", "wall"]
    assert [LONG[word.text_start : word.text_end] for word in words] == [word.word for word in words]
    assert [word.text_start for word in words] == sorted({word.text_start for word in words})
    assert len(words) == 8 * 6 + 11


class Aligned(Live):
    """Server that speaks a streamed text, with the words in the last event."""

    def _script(self, request: Request) -> list[Step]:
        steps = super()._script(request)
        if "session" not in request:
            self.last = Chunk(1, 640, is_final=True, is_last=True)
            return [*steps[:-1], self.last]
        self.last.more |= {"words": records(self.text)}
        return steps


@pytest.mark.parametrize("markup", ["auto", "none"])
async def test_aligned_words_of_live_text_have_places(markup: Markup) -> None:
    text, live = "<think>Red</think>Red\nBlue at $5, <x>red</x>", Aligned()
    async with SpeechClient(await live.server.start()) as client:
        events = [event async for event in client.speak(written(*cut(text, [4])), markup=markup)]
    await live.server.stop()
    words = [(word.word, word.text_start) for word in events[-1].words]
    assert words == [("Red", 18), ("Blue", 22), ("at", 27), ("$5", 30), ("red", 37)]
