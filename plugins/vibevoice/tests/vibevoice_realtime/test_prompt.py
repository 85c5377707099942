"""VibeVoice Realtime prompts: the rows of a voice, and a text whose tokens do not depend on how it arrives."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from plugins.vibevoice.tests.vibevoice_realtime_release import convert_release
from stretto.engine.feeds import TextFeed
from stretto.engine.prompt_checks import max_words
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.family.plugin import family_at
from stretto.family.text import load_text_codec
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_vibevoice.vibevoice_realtime.family import END_OF_TEXT, NUM_FRAMES, NUM_WORDS

TEXT = "  “The garden door” isn’t open,\n\n is it?  Close it, please.  \n"
SPOKEN = '"The garden door" isn\'t open,\n\n is it?  Close it, please.\n'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("vibevoice_realtime"))


def test_voice_and_text_are_those_of_the_authors_processor(checkpoint: Path) -> None:
    """White space around the text is removed, and a line end follows it, which is part of the last token."""
    family = family_at(checkpoint)
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(SPOKEN).ids
    assert ids[-1] == 256
    made = Preprocessor(checkpoint).prepare(RawRequest(text=TEXT, options='{"voice": "EN-BOB_man"}'))
    assert made.track == (*ids, END_OF_TEXT)
    assert family.voices == ("en-ann_woman", "en-bob_man")
    assert made.rows[:, 0].tolist() == [*range(family.end_of_reply + 17, family.end_of_reply + 38)]
    assert not made.rows[:, 1:].any()


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_streamed_text_gives_the_same_tokens(checkpoint: Path, size: int) -> None:
    codec = load_text_codec(family_at(checkpoint), checkpoint)
    assert codec.stream is not None
    stream, found = codec.stream(), list[int]()
    for start in range(0, len(TEXT), size):
        ids, stream = stream.after(TEXT[start : start + size], is_last=start + size >= len(TEXT))
        found += ids
    assert found == Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(SPOKEN).ids


@pytest.mark.parametrize(
    ("text", "message"),
    [(" \n ", "text of at least one character"), ("a" * 300, "at most 225 tokens, got 301 tokens")],
    ids=["blank", "long"],
)
def test_texts_without_a_reply_are_refused(checkpoint: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Preprocessor(checkpoint).prepare(RawRequest(text=text))


@pytest.mark.parametrize("length", [512, 300, *range(87, 99), 40])
def test_streamed_text_without_room_for_its_frames_is_refused(checkpoint: Path, length: int) -> None:
    """The frames after each window count, and those after the last one."""
    rules = SegmentRules(family_at(checkpoint), length)
    made = Preprocessor(checkpoint).prepare(RawRequest(text="a"))
    prompt = replace(made, track=(7,), is_open=True)
    room = length - len(prompt.rows) - 1  # without the row that ends the reply
    most = max(number for number in range(length) if number + -(-number // NUM_WORDS) * NUM_FRAMES <= room)
    engine: Any = SimpleNamespace(has=lambda name: False)

    async def write() -> None:
        track, left = rules.track(len(prompt.rows), prompt.track, is_open=True), max_words(prompt, rules) - 1
        feed = TextFeed(engine, "u", track, left)
        feed.write([7] * (most - 1), is_last=False)
        with pytest.raises(InvalidRequest, match="text: expected at most 0 more tokens, got 1 tokens"):
            feed.write([7, END_OF_TEXT], is_last=True)
        feed.write([END_OF_TEXT], is_last=True)

    asyncio.run(write())
