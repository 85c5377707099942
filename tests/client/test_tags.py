"""Reasoning and tags of language models are not spoken, however the text is cut."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stretto_client import SpeechClient
from stretto_client.markup import Markup, find_unspoken, open_reader
from stretto_client.tags import INVISIBLE, MAX_NAMES, MAX_TAG_CHARS, TagFilter
from tests.client.conftest import Serve
from tests.client.fake_server import PROFILE, Chunk
from tests.client.reading import cut, written
from tests.client.test_live_speech import Live

HELLO = "Hello there."
REASONING = (
    "<think>The user wants a greeting.</think>Hello there.",
    "<think>\n\n</think>\n\nHello there.",
    "<thinking>Two\n\nparagraphs, `code and <b>tags</b>.</thinking> Hello there.",
    "<THOUGHT>x</THOUGHT>\nHello there.",
    '<reasoning effort="high">x < y</reasoning>Hello there.',
    "<inner_thoughts>x</inner_thoughts>Hello there.",
    "<seed:think>x</think></seed:think>Hello there.",
    "<thinking>x</thinking>Hello there.",
    "<scratchpad>x</scratchpad>Hello there.",
    "<think>a</think><think>b</think>Hello there.",
    "Hello <think>x</think>there.",
    "Hello there.<think>never closed, and <b>more</b>",
    "[THINK]x[/THINK]Hello there.",
    "◁think▷x◁/think▷Hello there.",
    "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>Hello there.<|END_RESPONSE|>",
    "<|begin_of_thought|>x<|end_of_thought|>Hello there.",
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>Hello there.<|return|>",
)
OTHER = (
    "Hello there.<|im_end|>",
    "<|im_start|>assistant\nHello there.<|im_end|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello there.<|eot_id|>",
    "<start_of_turn>model\nHello there.<end_of_turn>",
    "<｜begin▁of▁sentence｜>Hello there.<｜end▁of▁sentence｜>",
    "<answer>Hello there.</answer>",
    '<response lang="en" id=7>Hello</response> there.',
    "<final_answer>Hello<sep/>there.</final_answer>",
    "<x:reply>Hello</x:reply> there.",
    "<回答>Hello there.</回答>",
    "<function=speak>Hello there.</function>",
    "Hello there.</think>",
    "He\u00adl\u200blo\u2060 there.\ufeff",
)
TEXT = (
    "if a<b and c>d then 3 < 4, <3",
    "an open <tag",
    "a <b",
    "<https://example.org/a>",
    "see <me@example.org>",
    "x <- y -> z <> w",
    "Use `<think>` and ``<answer>``.",
    "```html\n<think>\n<div>\n```",
    "So \\<think> is literal.",
    "<" + "x" * MAX_TAG_CHARS + ">",
    "[think] [laugh] ◁ ◁THINK▷ [THI",
    "<| not a token |> <|",
    "नमस्\u200dते \u200cمی\u200cخواهم",
)


def filtered(text: str, sizes: Sequence[int] = (), tags: Sequence[str] | None = None) -> str:
    """Return the text that a filter passes if it is cut into pieces of these sizes; in one piece if there are none."""
    tag_filter = TagFilter(tags)
    return "".join(map(tag_filter.add, cut(text, sizes))) + tag_filter.end()


@pytest.mark.parametrize("markup", ["auto", "markdown", "none"])
@pytest.mark.parametrize("text", REASONING + OTHER, ids=repr)
def test_reasoning_and_tags_are_not_spoken(text: str, markup: Markup) -> None:
    for size in (len(text), 1, 2, 3, 7):
        reader = open_reader(markup)
        spoken = "".join(map(reader.add, cut(text, [size]))) + reader.end()
        assert " ".join(spoken.split()) == HELLO, size
        assert reader.left_out or not set("<[◁") & set(text)


@pytest.mark.parametrize("text", TEXT, ids=repr)
def test_text_resembling_tags_is_kept(text: str) -> None:
    assert filtered(text) == filtered(text, [1]) == text


BITS = (
    *("<think>", "</think>", "<|im_end|>", "<|im_start|>", "user\n", "<a b='c'>", "<x>", "</x", "<", ">", "|>", "<|"),
    *("<|channel|>", "<|message|>", "<|end|>", "final", "[THINK]", "[/TH", "◁think▷", "◁", "`", "```", "\\", "\n", " "),
    *("word", ".", "\u00ad", "<speak>", "<?xml ", "<b>", "猫", "=", "'", "/", "<laugh>", "thinking", ":", "  "),
)
TEXTS = st.lists(st.sampled_from(BITS), max_size=30).map("".join)
CUTS = st.lists(st.integers(1, 20), min_size=1, max_size=10)


@given(TEXTS, CUTS)
@example("\\``<x>", [2])
@example("<|channel|>a<|", [13])
def test_filtering_does_not_depend_on_cuts(text: str, sizes: list[int]) -> None:
    assert filtered(text, sizes) == filtered(text) == filtered(text, [1])
    assert not set(filtered(text)) & set(map(chr, INVISIBLE))


def test_every_cut_of_reasoning_gives_the_same_text() -> None:
    for text in REASONING:
        assert {filtered(text, [cut, len(text)]) for cut in range(1, len(text))} == {filtered(text)}


def test_tags_that_the_model_renders_are_kept() -> None:
    text = 'So <laugh> <sigh/> <hum> <break time="1s"/> </hum> <|tone|>'
    assert filtered(text, tags=("<hum>", "<|tone|>", "[laugh]")) == "So <hum> </hum> <|tone|>"
    assert filtered(text, tags=("<laugh>", "<sigh>", "<break>")) == 'So <laugh> <sigh/> <break time="1s"/> '
    assert filtered(text) == "So <laugh> <sigh/> "


def test_names_of_tags_that_are_left_out_are_listed_once() -> None:
    text = "<think>a<b2></think>x<y1>z</y1><|im_end|>`<code>`" + "".join(f"<t{number}>" for number in range(30))
    names = asyncio.run(find_unspoken(text, "auto", ())).tags
    assert names[:4] == ["think", "y1", "im_end", "t0"]
    assert len(names) == MAX_NAMES
    assert asyncio.run(find_unspoken("<speak>a <x>b</x></speak>", "auto", ())) == ([], ["x"])
    assert asyncio.run(find_unspoken("<speak>a</speak>", "none", ())) == (["speak"], [])
    assert asyncio.run(find_unspoken("(laughs) Hi there.", "auto", ())).tags == ["(laughs)"]
    assert not asyncio.run(find_unspoken("(laughs) Hi there.", "none", ())).tags


def test_line_ends_before_the_text_go_with_a_tag_and_later_ones_stay() -> None:
    assert filtered("<think>x</think>\n Hello.") == "Hello."
    assert filtered("Hello.\n<|tone|> \n\nBye.") == "Hello.\n\n\nBye."


EFFECTS = """<speak><lexicon uri="https://a.example/b"/><p><s>a <emphasis>b</emphasis></s></p>
<break/><sub alias="x">y</sub>
<prosody rate="slow" pitch="high">c</prosody><phoneme alphabet="ipa" ph="a">d</phoneme><think>e</think>
<phoneme alphabet="cmu" ph="HH">f</phoneme><say-as interpret-as="digits"><phoneme alphabet="cmu" ph="HH">1</phoneme>
</say-as><m:x xmlns:m="n">g</m:x><voice name="h" gender="f">i</voice><desc>j</desc><phoneme ph="">k</phoneme></speak>"""


@pytest.mark.parametrize(
    ("alphabets", "has_rates", "expected"),
    [
        ((), False, ["lexicon", "emphasis", "prosody.pitch", "prosody.rate", "phoneme", "x", "voice.gender"]),
        (
            ("cmu", "ipa"),
            True,
            ["lexicon", "emphasis", "prosody.pitch", "phoneme", "x", "voice.gender"],
        ),  # within say-as
    ],
)
def test_elements_of_ssml_without_effect_are_listed(
    alphabets: tuple[str, ...], has_rates: bool, expected: list[str]
) -> None:
    found = asyncio.run(find_unspoken(EFFECTS, "auto", (), alphabets, has_rates))
    assert found == (["think"], expected)
    many = "".join(f"<a{number}>b</a{number}>" for number in range(30))
    assert len(asyncio.run(find_unspoken(f"<speak>{many}</speak>", "ssml", ())).elements) == MAX_NAMES
    assert asyncio.run(find_unspoken("<speak><x>a", "ssml", ())).elements == ["x"]


def test_reasoning_before_and_in_ssml_is_not_spoken() -> None:
    reader = open_reader("auto")
    assert "".join(map(reader.add, "<think>x</think>\n<speak>a<think>b</think> c</speak>")) + reader.end() == "a c"
    assert reader.left_out == ["think"]


SPOKEN = [Chunk(0, 640, words=("a",)), Chunk(1, 640, is_final=True, is_last=True)]


@pytest.mark.parametrize("markup", ["auto", "none"])
async def test_client_sends_no_reasoning_and_reports_it(serve: Serve, markup: Markup) -> None:
    server, client = await serve(SPOKEN, profile=PROFILE | {"tags": ["<hum>"]})
    text = "<think>The user.</think>Hello <hum> <laugh>there.<|im_end|>"
    for source in (text, *(written(*cut(text, [size])) for size in (1, 5, 50))):
        events = [event async for event in client.speak(source, markup=markup)]
        assert events[-1].report is not None
        assert events[-1].report["left_out"] == ["think", "laugh", "im_end"]
    await anext(client.speak("Hello."))
    assert [request["text"].decode() for request in server.requests] == ["Hello <hum> there."] * 4 + ["Hello."]


async def test_live_text_contains_no_reasoning() -> None:
    live = Live()
    async with SpeechClient(await live.server.start()) as client:
        events = [event async for event in client.speak(written(*cut("<think>x y</think>Hello there.<|im_end|>", [3])))]
    await live.server.stop()
    assert live.text == HELLO
    assert events[-1].report is not None
    assert events[-1].report["left_out"] == ["think", "im_end"]
