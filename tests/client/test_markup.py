"""Markdown and SSML are converted to the same text for any division into pieces, in bounded time."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stretto_client import RequestRefused, SpeechClient
from stretto_client.markup import (
    MAX_HELD_CHARS,
    AutoReader,
    Markup,
    has_marks,
    open_reader,
    read_parts,
    read_pieces,
    read_text,
    ssml_reader,
)
from stretto_client.ssml import RateChange
from tests.client.conftest import Serve
from tests.client.fake_server import Chunk, FakeServer
from tests.client.reading import cut, read, written
from tests.interpreter_steps import count_steps

MARKDOWN = {
    # blocks
    "# Title #\n\nText": "Title.\n\nText",
    "Title\n=====\ntext\n---\nmore": "Title.\n\ntext.\n\nmore",
    "- apples\n* pears and\n  plums!\n+ figs\n\nDone": "apples.\npears and\n  plums!\nfigs.\n\nDone",
    "1. One\n2) Two:\n3. Three.": "1. One.\n2) Two:\n3. Three.",
    "- [ ] this\n- [x] that": "this.\nthat.",
    "> quoted\n> text\nreply": "quoted\ntext.\nreply",
    "> - item\n> - (two)": "item.\n(two).",
    "one\n\n***\n* * *\ntwo": "one.\n\n\n\ntwo",
    "| name | age |\n|:---|---:|\n| **Ann** | 7 |\nend": "name, age.\n\nAnn, 7.\nend",
    "run\n```py\nx = *a* # b\n```\nnow": "run.\n\nx = *a* # b.\n\nnow",
    "[id]: https://a.b 'c'\ntext": "text",
    "- 项目一\n- 项目二": "项目一。\n项目二。",
    # inline
    "**bold**, *it*, __b__, _i_, ***both*** and ~~gone~~": "bold, it, b, i, both and gone",
    '[docs](http://x.y/a_b "the _title_") ![a *cat*](u.png)': "docs a cat",
    "`code x_y` and ``a ` b``": "code x_y and a ` b",
    "https://a.b/_foo_/c?d=*, <https://x.y> and a@b.cd": "https://a.b/_foo_/c?d=*, https://x.y and a@b.cd",
    '<b>bold</b>, x<br/>y <span class="c">z</span> <!-- no -->': "bold, x y z",
    "this &amp; that &lt; \\*those\\*": "this & that < *those*",
    "**over\ntwo lines** and on": "over\ntwo lines and on",
    "这是**重点**内容。**中文。**中文": "这是重点内容。中文。中文",
    "a note[^1]\n\n[^1]: the note": "a note.\n\n the note",
    # emoji
    "Hi 😀 there 👩‍🔬! 👍🏽 1️⃣ ❤️": "Hi there! 1",
}
UNCHANGED = (
    *("3 * 4 < 20", "snake_case_name", "5 > 3", "2*3*4 = 24, x**2", "a<b and c>d", "-5 degrees", "#1 and ##x"),
    *("[laugh] ok <laugh> [SPEAKER0] hi", "AT&T & Co; &copy", "~5~ km", "1984. A year", "a | b", "5 * 3 * 2 _ 1"),
    *("$5 & 6_000", "C:\\temp", "an e-mail: a_b@c.de", "  two  spaces. \n\nand lines  \n", "a *", "((x"),
    *("[0, 1) or (1, 2]", "f(x)[0](y", "`", "**", "x ** y", "e\u0301 नमस्ते สวัสดี"),
)


def spoken(text: str, markup: Markup) -> list[str | float]:
    return asyncio.run(read_text(text, markup))


@pytest.mark.parametrize("text", MARKDOWN, ids=repr)
def test_markdown_markup_is_removed(text: str) -> None:
    assert read(text).strip() == MARKDOWN[text].strip()
    assert has_marks(text)


@pytest.mark.parametrize("text", UNCHANGED, ids=repr)
def test_text_resembling_markup_is_unchanged(text: str) -> None:
    assert read(text) == text


@given(st.text(st.sampled_from("abc ABCé,.?!'\"()5%/:;—“”$@"), max_size=80))
def test_a_line_of_plain_text_is_unchanged(text: str) -> None:
    assert read(text) == read(text, "none") == text
    assert not has_marks(text) or text.lstrip(" ").startswith("5")


BITS = (
    *("**", "*", "_", "`", "```", "~~", "\n", "\n\n", " ", "- ", "1. ", "# ", "> ", "|", "| a | b |\n", "|---|"),
    *("[a](b)", "[", "]", "(", ")", "<b>", "</b>", "<laugh>", "<", "&amp;", "\\", "word", "猫", "。", "😀", "👩‍🔬"),
    *("\u200d", "\ufe0f", ".", "http://a_b_", "---", "===", "\r\n", "[^1]", "[x] ", "[id]: http://x", "5", "!", "\t"),
    *("![", "<speak>", "\r"),
    "w" * (MAX_HELD_CHARS - 2),
)
DECORATION_BITS = (
    *("$", "$$", r"\(", r"\)", r"\[", r"\]", r"\frac", "{", "}", "^", "_", "x", "2", " ", "\n", "word", "is"),
    *(r"\text{is it}", r"\alpha", r"\begin{align}", r"\end{align}", "\\", "ツ", "¯", "(", ")", "猫", "ಠ", "."),
    *("(sighs", "*laughs*", "[pause]", "-\n", "\u00ad", "a", "I", "*", "é", "ω", "exam"),
)
SSML_BITS = (
    *("<p>", "</p>", "<s>", "</s>", "<break/>", "<break time='100ms'/>", "<sub alias='x y'>z</sub>", " ", "\n", "😀"),
    *("😀 ", "<prosody rate='slow'>", "<prosody rate='150%'>", "</prosody>"),
    *("<phoneme alphabet='cmu' ph='K AE1 T'>cat</phoneme>", "<say-as interpret-as='digits'>12</say-as>", "a ", "bc"),
    *("&amp;", "猫", ". ", "<emphasis>", "</emphasis>"),
)
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def outcome(text: str, sizes: list[int]) -> object:
    """Return the spoken text of `text`, read in pieces of these sizes, or the error message."""
    reader = open_reader("auto", alphabets=("cmu",), has_rates=True)
    try:
        return "".join(map(reader.add, cut(text, sizes))) + reader.end(), list(reader.pauses)
    except RequestRefused as refusal:
        return type(refusal)


SSML_TEXTS = st.lists(st.sampled_from(SSML_BITS), max_size=20).map(lambda bits: f"<speak>{''.join(bits)}</speak>")
TEXTS = st.one_of(
    *(st.lists(st.sampled_from(bits), max_size=40).map("".join) for bits in (BITS, DECORATION_BITS)), SSML_TEXTS
)


@pytest.mark.slow
@given(TEXTS, CUTS)
@settings(max_examples=250)
@example("x\r\ny", [2])
@example("<speak", [1])
@example("**a" + " b" * 2000, [7])
@example("$" + "x" * 300 + "$", [7])
@example(r"\(" + "a " * 600, [9])
def test_what_is_spoken_does_not_depend_on_chunking(text: str, sizes: list[int]) -> None:
    assert outcome(text, sizes) == outcome(text, []) == outcome(text, [1])


@pytest.mark.parametrize(
    ("inner", "parts", "phonemes"),
    [
        ("a <prosody rate='50%'>b</prosody> c", ["a", 0.5, "b", 1.0, "c"], []),
        (
            "<prosody rate='fast'>a <prosody rate='+20%'>b</prosody> c</prosody>",
            [1.55, "a", 1.2, "b", 1.55, "c", 1.0],
            [],
        ),
        ("<prosody rate='1.5'>a</prosody><prosody rate='-25%'>b</prosody>", [1.5, "a", 1.0, 0.75, "b", 1.0], []),
        ("<prosody rate='medium' volume='loud'>a</prosody> b", ["a b"], []),
        ("<prosody rate='slow'><break time='1s'/>a</prosody>", [0.64, 1.0, "a", 1.0], []),
        ("I say <phoneme alphabet='x-cmu' ph='T'>to</phoneme>.", ["I say \ue000to."], [("\ue000to", "T", "cmu")]),
        (
            "<phoneme alphabet='cmu' ph='T'> to  me </phoneme>-<phoneme alphabet='cmu' ph='B'>to me</phoneme>"
            "<phoneme alphabet='CMU' ph='T'>to me</phoneme>",
            ["\ue000to me -\ue001to me\ue000to me"],
            [("\ue000to me", "T", "cmu"), ("\ue001to me", "B", "cmu")],
        ),
        ("<phoneme alphabet='ipa' ph='a'>b</phoneme> <phoneme alphabet='cmu' ph='T'>.</phoneme>c", ["b .c"], []),
    ],
    ids=range(8),
)
def test_ssml_changes_rates_and_marks_words_with_phonemes(
    inner: str, parts: list[object], phonemes: list[tuple[str, str, str]]
) -> None:
    reader = open_reader("ssml", alphabets=("cmu",), has_rates=True)
    found = asyncio.run(read_parts(f"<speak>{inner}</speak>", reader))
    assert [part.value if isinstance(part, RateChange) else part for part in found] == parts
    ssml = ssml_reader(reader)
    assert ssml is not None
    assert [(word, each["phonemes"], each["alphabet"]) for word, each in ssml.pronunciations.items()] == phonemes
    assert asyncio.run(read_parts(f"<speak>{inner}</speak>", open_reader("ssml"))) is not None


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            '<prosody rate="5%">a</prosody>',
            "expected a prosody rate from 25% to 400%, or x-slow, slow, medium, default",
        ),
        ('<prosody rate="quick">a</prosody>', "expected a prosody rate from 25% to 400%"),
        ('<prosody rate="9e9%">a</prosody>', "expected a prosody rate from 25% to 400%"),
        ('<phoneme alphabet="cmu" ph="&lt;b>">a</phoneme>', "expected text without characters of markup in a phoneme"),
        ('<phoneme alphabet="cmu" ph="A">a</phoneme>', "expected symbols of the CMU dictionary, such as"),
        (f'<phoneme alphabet="cmu" ph="AA">{"a" * 100}</phoneme>', "expected 1 to 100 characters in a phoneme element"),
    ],
    ids=range(6),
)
def test_invalid_rates_and_phonemes_of_ssml_are_refused(inner: str, message: str) -> None:
    reader = open_reader("auto", alphabets=("cmu",), has_rates=True)
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(read_parts(f"<speak>{inner}</speak>", reader))
    assert str(caught.value).startswith(f"text: {message}")


def test_markup_reader_emits_words_before_the_line_ends() -> None:
    reader = open_reader("auto")
    assert reader.add("One **two** three") == "One two"
    assert reader.add(" four *fi") == " three four"
    assert reader.add("ve six* seven ") == " five six seven"
    assert open_reader("auto").add("今天天气") == "今天天气"


SSML = {
    'Hello <break time="500ms"/> world.': ["Hello", 0.5, "world."],
    'a<break strength="strong"/>b<break strength="none"/>c<break/>': ["a", 1.0, "bc", 0.75],
    'a<break strength="x-weak"/>b<break strength="weak"/>c<break strength="x-strong"/>d': [
        "a",
        0.25,
        "b",
        0.5,
        "c",
        1.25,
        "d",
    ],
    'a<break time="10s"/>b': ["a", 10.0, "b"],
    '<sub alias="World Wide Web">WWW</sub> &amp; <emphasis level="strong">more</emphasis>': ["World Wide Web & more"],
    "<p>One</p><p><s>Two</s><s>Three!</s></p>end": ["One. Two. Three! end"],
    '<audio src="u"><desc>not read</desc>a beep</audio><metadata>no</metadata>': ["a beep"],
    '<say-as interpret-as="digits">123</say-as>, <say-as interpret-as="characters">BBC</say-as>': ["1 2 3, B B C"],
    '<say-as interpret-as="spell-out">ate</say-as>': ["A T E"],
    '<say-as interpret-as="cardinal">1984</say-as>, <say-as interpret-as="cardinal">7</say-as>': ["1,984, 7"],
    '<say-as interpret-as="ordinal">22</say-as>, <say-as interpret-as="ordinal">111</say-as>': ["22nd, 111th"],
    '<say-as interpret-as="telephone">+1 (555) 867-5309</say-as>': ["1, 5 5 5, 8 6 7, 5 3 0 9"],
    '<say-as interpret-as="date" format="mdy">5/6/2024</say-as>': ["5/6/2024"],
    '<mstts:express-as style="sad">*not* Markdown</mstts:express-as> 😀!': ["*not* Markdown!"],
}


@pytest.mark.parametrize("inner", SSML, ids=repr)
def test_ssml_becomes_text_and_pauses(inner: str) -> None:
    parts = spoken(f'<?xml version="1.0"?>\n<speak version="1.1">{inner}</speak>\n', "auto")
    assert [" ".join(part.split()) if isinstance(part, str) else part for part in parts] == SSML[inner]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<speak>a & b</speak>", "expected well-formed SSML, got not well-formed (invalid token) at line 1, column 11"),
        ("<speak>a", "expected well-formed SSML, got no element found"),
        ("<speak>a \ud800 b</speak>", "expected text of valid characters in SSML, got half of a surrogate pair"),
        ("<speak>a</speak>b", "expected well-formed SSML, got junk after document element"),
        ('<?xml version="1.0"?><p>a</p>', "expected the root element speak of SSML, got p"),
        ("<speak>" + "<p>" * 40, "expected elements nested at most 32 deep in SSML, got more"),
        ('<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "b">]><speak>&a;</speak>', "expected no document type in SSML"),
        ('<speak><break time="1h"/></speak>', "expected a break's time in s or ms in SSML, got 1h"),
        ('<speak><break time="11s"/></speak>', "expected breaks of at most 10 s in SSML, got 11 s"),
        ("<speak>" + '<break time="9s"/>' * 7, "expected breaks of at most 60 s in all in SSML, got more"),
        ('<speak><break strength="big"/></speak>', "expected a break's strength among none, x-weak"),
        ("<speak><break/></speak>", "expected text to speak, got only markup"),
        ("😀 ***", "expected text to speak, got only markup"),
    ],
)
def test_unspeakable_input_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        spoken(text, "auto")
    assert str(caught.value).startswith(f"text: {message}")


def test_markup_kind_can_be_specified() -> None:
    assert spoken("*a*", "markdown") == ["a"]
    assert spoken("<speak>*a*</speak>", "ssml") == ["*a*"]
    assert spoken("<speak>*a*</speak>", "markdown") == ["a"]
    assert spoken("*a* <speak>&amp;</speak>", "none") == ["*a* &amp;"]
    with pytest.raises(RequestRefused, match="expected well-formed SSML"):
        spoken("a < b", "ssml")


HOSTILE = (
    *("*a **a ", "![[](", "`a`` ", "[a](", "*_", '<a b="', "&amp;", "> ", "- ", "|a|\n", "**", "~~a", "<b a='' ", "\n"),
    *(" ", "$1 ", r"\(", r"\frac{", "$x", r"\begin{a}", "ツ(", "(sighs ", "*laughs ", "\u00ad", "-\n", "$$", "{^"),
    *("a_{",),
)


@pytest.mark.parametrize("unit", HOSTILE, ids=repr)
def test_markup_reading_time_is_linear_in_the_length(unit: str) -> None:
    def steps(num_chars: int) -> int:
        return count_steps(lambda: read((unit * num_chars)[:num_chars]))

    assert steps(8_000) < 3 * steps(4_000) + 1000


class WatchedReader(AutoReader):
    """Reader that records the length of each piece and its thread."""

    taken: list[tuple[int, int]]

    def add(self, piece: str) -> str:
        self.taken.append((len(piece), threading.get_ident()))
        return super().add(piece)


@pytest.mark.parametrize("is_written", [False, True])
async def test_long_texts_do_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch, is_written: bool) -> None:
    monkeypatch.setattr("stretto_client.markup.AutoReader", WatchedReader)
    monkeypatch.setattr(WatchedReader, "taken", [], raising=False)
    text = "_a word_ " * 1000
    if is_written:
        got = "".join([part async for part in read_pieces(written(text), open_reader("auto"))]).strip()
    else:
        (whole,) = await read_text(text, "auto")
        got = str(whole)
    assert got == ("a word " * 1000).strip()
    long = [(num_chars, thread) for num_chars, thread in WatchedReader.taken if num_chars > 100]
    assert sum(num_chars for num_chars, _ in long) == len(text)
    assert all(num_chars <= 1000 and thread != threading.get_ident() for num_chars, thread in long)


# --- through the client -----------------------------------------------------------------------------------------------


def texts(server: FakeServer) -> list[str]:
    return [request["text"].decode() for request in server.requests]


SPOKEN = [Chunk(0, 640, words=("a",)), Chunk(1, 640, is_final=True, is_last=True)]
BREAK = '<speak>One. <break time="1500ms"/>Two. <break time="100ms"/></speak>'


@pytest.mark.parametrize("is_written", [False, True])
async def test_break_markup_inserts_silence_between_clauses(serve: Serve, is_written: bool) -> None:
    server, client = await serve(SPOKEN)
    text = written(*BREAK) if is_written else BREAK
    events = [event async for event in client.speak(text, markup="auto")]
    assert texts(server) == ["One.", "Two."]
    pcm = np.concatenate([event.pcm for event in events if event.pcm is not None])
    assert len(pcm) == 4 * 640 + 16_000 * 1.6
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.is_final for event in events] == [False] * (len(events) - 1) + [True]
    words = [word.start_s for event in events for word in event.words]
    assert np.allclose(words, [0, 0.08 + 1.5])
    ends = [event.start_s + event.duration_s for event in events]
    assert np.allclose([event.start_s for event in events[1:]], ends[:-1])
    assert all(len(event.pcm) <= 16_000 for event in events if event.pcm is not None)


async def test_markup_is_removed_before_a_text_is_split(serve: Serve) -> None:
    server, client = await serve(SPOKEN)
    await speak(client, "# Title\n\n**Note:** " + "word " * 40 + "*end*")
    await speak(client, "A cat.")
    await speak(client, "**x**", markup="none")
    with pytest.raises(RequestRefused, match="text: expected text to speak"):
        await speak(client, "😀")
    with pytest.raises(ValueError, match="markup: expected one of auto, none, markdown, ssml, got 'html'"):
        await speak(client, "x", markup="html")
    await speak(client, written("**No", "te:** on", "e"))
    sent = texts(server)
    assert " ".join(sent[:-3]) == "Title.\n\nNote: " + "word " * 40 + "end"
    assert sent[-3:] == ["A cat.", "**x**", "Note: one"]
    assert len({json.loads(request["options"])["seed"] for request in server.requests[:-3]}) == 1


async def speak(client: SpeechClient, text: str | AsyncIterator[str], markup: Markup = "auto") -> None:
    async for _ in client.speak(text, markup=markup):
        pass
