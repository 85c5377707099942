"""Pronunciation dictionaries: matching of words, texts in parts, entries, and files."""

import random
import tracemalloc
import unicodedata

import pytest

from stretto_contract.lexicon_files import read_lexicon, write_json, write_pls
from stretto_contract.pronunciation import (
    Dictionary,
    DictionaryEntry,
    InvalidEntry,
    Pronouncer,
    ends_word,
    is_inside,
    occurring,
    read_entries,
)

PHRASES = {"New York": "Noo Yawk", "york": "yoark", "New": "noo"}


def spoken(text: str, *spellings: dict[str, str]) -> str:
    return Pronouncer(tuple(map(Dictionary, spellings))).after(text)[0]


@pytest.mark.parametrize(
    ("spellings", "text", "expected"),
    [
        # whole words, in any case; the exact one first
        (
            {"SQL": "sequel"},
            "SQL, sql and MySQL: SQL_x, SQL2, (SQL).",
            "sequel, sequel and MySQL: SQL_x, SQL2, (sequel).",
        ),
        ({"US": "you ess", "us": "us"}, "US or us, Us", "you ess or us, you ess"),
        ({"polish": "polish", "Polish": "poalish"}, "Polish polish POLISH", "poalish polish polish"),
        # apostrophes
        (
            {"SQL": "sequel", "don": "x", "ONU": "onu"},
            "SQL's don't l'ONU SQL’s 'SQL'",
            "sequel's don't l'onu sequel’s 'sequel'",
        ),
        ({"o'clock": "oh clock"}, "one o’clock O'CLOCK", "one oh clock oh clock"),
        # the longest phrase first, with any white space
        (PHRASES, "New York, new  york, New\nYork; York New", "Noo Yawk, Noo Yawk, Noo Yawk; yoark noo"),
        (PHRASES, "New    York", "noo    yoark"),
        (PHRASES, "New Yorker", "noo Yorker"),
        # the replacement is not searched again
        ({"a": "b", "b": "a"}, "a b", "b a"),
        ({"ha": "ha ha"}, "ha ha", "ha ha ha ha"),
        # signs at the ends of a word
        (
            {"C++": "see plus plus", "C": "see", ".NET": "dot net"},
            "C++ C x++ C++x ASP.NET .NET",
            "see plus plus see x++ see++x ASP.NET dot net",
        ),
        # Unicode: composed and decomposed letters, scripts without spaces
        ({"café": "kaffay"}, "café cafe\u0301 CAFE\u0301 cafe", "kaffay kaffay kaffay cafe"),
        ({"cafe": "x"}, "cafe\u0301", "cafe\u0301"),
        ({"Straße": "strasse", "İ": "i"}, "straße STRASSE İ", "strasse STRASSE i"),
        ({"重庆": "虫庆", "东京": "とうきょう"}, "我在重庆。东京都", "我在虫庆。とうきょう都"),
        ({"AI": "人工智能"}, "用AI写 AIR", "用人工智能写 AIR"),
        # tags are not touched
        ({"laugh": "x", "s0": "y", "hh": "z"}, "<laugh> laugh [s0] s0 {HH AH0}", "<laugh> x [s0] y {HH AH0}"),
        (
            {"1": "one", "speaker": "x", "2": "two"},
            "Speaker 1: 1 speaker\nspeaker 2 : Speaker 2",
            "Speaker 1: one x\nspeaker 2 : x two",
        ),
        ({"time": "x", "s": "y"}, "time <break time='1s'/> s", "x <break time='1s'/> y"),
        ({"b": "bee"}, "a < b and [ b ] { } <", "a < bee and [ bee ] { } <"),
        ({}, "a b", "a b"),
    ],
    ids=range(21),
)
def test_words_are_replaced_and_parts_of_a_text_give_the_same(
    spellings: dict[str, str], text: str, expected: str
) -> None:
    assert spoken(text, spellings) == expected
    rng = random.Random(text)
    for sizes in ([1], [2, 3], [rng.randint(0, 9) for _ in range(60)]):
        at, pronouncer, parts, changes = 0, Pronouncer((Dictionary(spellings),)), [], []
        for size in sizes * (len(text) + 1):
            part, found, pronouncer = pronouncer.after(text[at : at + size], is_last=False)
            parts, changes, at = [*parts, part], [*changes, *found], at + size
        part, found, _ = pronouncer.after("")
        whole, all_changes, _ = Pronouncer((Dictionary(spellings),)).after(text)
        assert ("".join(parts) + part, changes + found) == (whole, all_changes)
        for change in all_changes:
            assert text[change.source_start : change.source_end] == change.word
            assert whole[change.start : change.end] in spellings.values()


def test_first_dictionary_precedes_but_longer_words_of_another_do_too() -> None:
    assert spoken("New York new", {"new": "n"}, PHRASES) == "Noo Yawk n"
    assert spoken("York", {"YORK": "mine"}, PHRASES) == "mine"


def spoken_slowly(spellings: dict[str, str], text: str) -> str:
    """Replace words by trying all entries at all places."""

    def plain(part: str) -> str:
        return " ".join(part.replace("’", "'").split())

    def lower(part: str) -> str:
        return "".join(each.lower() if len(each.lower()) == 1 else each for each in plain(part))

    exact, other = dict[str, str](), dict[str, str]()
    for word, spelling in spellings.items():
        for form in (unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)):
            exact.setdefault(plain(form), spelling)
            other.setdefault(lower(form), spelling)
    at, parts = 0, list[str]()
    while at < len(text):
        best, part = at + 1, text[at]
        for end in range(at + 1, len(text) + 1) if at == 0 or not is_inside(text[at - 1], text[at]) else ():
            found = text[at:end]
            spelling = exact.get(plain(found)) or other.get(lower(found))
            if spelling and found == found.strip() and "    " not in found and ends_word(text, end, True):
                best, part = end, spelling
        parts.append(part)
        at = best
    return "".join(parts)


@pytest.mark.parametrize("letters", ["aAb ", "aA’'é\u0301 ", "中文a ", "ΣσςİIiı "], ids=range(4))
def test_random_words_are_found_as_by_a_slow_search(letters: str) -> None:
    rng = random.Random(7)
    for _ in range(40):
        drawn = ("".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 12)))
        words = {" ".join(word.strip(" '’\u0301").split()): f"<{number}>" for number, word in enumerate(drawn)}
        words.pop("", None)
        text = "".join(rng.choices(letters, k=40))
        whole = spoken(text, words)
        assert whole == spoken_slowly(words, text), (words, text)
        parts, pronouncer = "", Pronouncer((Dictionary(words),))
        for character in text:
            part, _, pronouncer = pronouncer.after(character, is_last=False)
            parts += part
        assert parts + pronouncer.after("")[0] == whole


def test_memory_of_a_dictionary_is_proportional_to_its_text() -> None:
    """The largest dictionary of a request, whose decomposed letters are three times as many."""
    rng = random.Random(0)
    words = {"".join(chr(rng.randint(0xAC00, 0xD7A3)) for _ in range(100)): "x" for _ in range(212)}
    tracemalloc.start()
    try:
        dictionary = Dictionary(words)
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
    finally:
        tracemalloc.stop()
    assert dictionary.begins(next(iter(words))[0])


def test_text_that_is_held_is_short() -> None:
    """A reply that reads a text word by word does not wait for more than the longest entry."""
    pronouncer = Pronouncer((Dictionary({"a " * 49 + "b": "x"}),))
    for _ in range(500):
        _, _, pronouncer = pronouncer.after("a ", is_last=False)
        assert len(pronouncer.held) <= 100
    for text in ("<a" + " b" * 200, "[" + "a" * 100, "{" + "a " * 200):
        assert len(Pronouncer((Dictionary({"x": "y"}),)).after(text, is_last=False)[2].held) <= 4


def test_number_of_steps_is_linear_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"a" * length: "b" for length in range(1, 101)} | {"a " * 49 + "b": "c"}
    calls: list[int] = []
    find = Dictionary.find
    monkeypatch.setattr(Dictionary, "find", lambda *given: calls.append(1) or find(*given))  # type: ignore[func-returns-value]
    for text in ("a " * 1000, "a" * 2000, "<" * 2000, "[a" * 1000):
        calls.clear()
        spoken(text, entries)
        assert len(calls) <= 1000


BAD = [
    ([], "an object of words and their spellings"),
    ({"": "x"}, "1 to 100 characters"),
    ({"x" * 101: "x"}, "1 to 100 characters"),
    ({"x": ""}, "1 to 400 characters"),
    ({"a " * 20 + "b": "x"}, "at most 20 words"),
    ({"啊" * 21: "x"}, "at most 20 words"),
    ({"-" * 20 + "a": "x"}, "at most 20 words"),
    ({"x": "y" * 401}, "1 to 400 characters"),
    ({"x": " y"}, "begins and ends without a space"),
    ({"...": "dots"}, "has a letter or a digit"),
    ({"x": "<|im_end|>"}, "without characters of markup"),
    ({"x": "[laughter]"}, "without characters of markup"),
    ({"x": "a<break time='9s'/>"}, "without characters of markup"),
    ({"x": "{HH AH0}"}, "without characters of markup"),
    ({"x": "a\nb"}, "without control characters"),
    ({"x\x1cy": "a"}, "without control characters"),
    ({"x": "a\ud800"}, "without control characters"),
    ({"x": 3}, "a spelling, or an object"),
    ({"x": {"phonemes": "S", "more": 1}}, "a spelling, or an object"),
    ({"x": {"alphabet": "cmu"}}, "a spelling, or an object"),
    ({"x": {"phonemes": "S", "alphabet": "sampa"}}, "one of cmu, ipa, pinyin"),
    ({"x": {"phonemes": "HH AH3"}}, "x.phonemes: expected symbols of the CMU dictionary, .* got 'AH3'"),
    ({"x": {"phonemes": "hh"}}, "symbols of the CMU dictionary"),
    ({"x": {"phonemes": "ni3 hao", "alphabet": "pinyin"}}, "syllables of pinyin with tones, .* got 'hao'"),
    ({"x": {"phonemes": "xyz1", "alphabet": "x-pinyin"}}, "syllables of pinyin with tones"),
    ({"x": {"phonemes": "S] [T", "alphabet": "cmu"}}, "without characters of markup"),
    ({f"w{index}": "x" for index in range(10_001)}, "at most 10000 entries"),
]


@pytest.mark.parametrize(("record", "words"), BAD, ids=range(len(BAD)))
def test_invalid_entries_are_refused(record: object, words: str) -> None:
    with pytest.raises(InvalidEntry, match=words) as refusal:
        read_entries(record)
    assert str(refusal.value).isascii()
    assert len(str(refusal.value)) < 300


ENTRIES = (
    DictionaryEntry("SQL", "sequel"),
    DictionaryEntry("R&D", "are & dee"),
    DictionaryEntry("重庆", "chong2 qing4", "pinyin"),
    DictionaryEntry("hello", "HH AH0 L OW1", "cmu"),
)


@pytest.mark.parametrize("write", [write_json, write_pls])
def test_files_keep_the_entries(write: object) -> None:
    text = write(ENTRIES)  # type: ignore[operator]
    assert read_lexicon(text.encode()) == ENTRIES
    assert read_lexicon(b"\xef\xbb\xbf" + text.encode()) == ENTRIES


PLS = """<?xml version="1.0" encoding="UTF-8"?>
<lexicon version="1.0" xmlns="http://www.w3.org/2005/01/pronunciation-lexicon" alphabet="ipa" xml:lang="en-US">
  <!-- of another service -->
  <lexeme><grapheme>colour</grapheme><grapheme>color</grapheme><phoneme>ˈkʌlɚ</phoneme></lexeme>
  <lexeme><grapheme>W3C</grapheme><phoneme alphabet="cmu-arpabet">D AH1</phoneme><alias>World Wide Web
      Consortium</alias></lexeme>
  <lexeme><grapheme>tomato</grapheme><phoneme alphabet="cmu-arpabet">T AH0 M EY1</phoneme>
    <example>a</example></lexeme>
</lexicon>"""


def test_pls_of_other_services_is_read() -> None:
    assert read_lexicon(PLS.encode()) == (
        DictionaryEntry("colour", "ˈkʌlɚ", "ipa"),
        DictionaryEntry("color", "ˈkʌlɚ", "ipa"),
        DictionaryEntry("W3C", "World Wide Web Consortium"),
        DictionaryEntry("tomato", "T AH0 M EY1", "cmu"),
    )


BOMB = '<!DOCTYPE l [<!ENTITY a "xxxxxxxxxx"><!ENTITY b "&a;&a;&a;">]><lexicon><lexeme>&b;</lexeme></lexicon>'
MANY = "<lexicon>" + "<lexeme><grapheme>{}</grapheme><alias>x</alias></lexeme>" * 4 + "</lexicon>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "without a document type"),
        ("<lexicon>", "well-formed PLS"),
        ("<speak>a</speak>", "root element lexicon"),
        ("<lexicon>" + "<a>" * 9 + "</a>" * 9 + "</lexicon>", "nested at most 8"),
        ("<lexicon><lexeme><grapheme>a</grapheme></lexeme></lexicon>", "an alias or phoneme"),
        ("<lexicon><lexeme><grapheme>a</grapheme><alias>&lt;b></alias></lexeme></lexicon>", "characters of markup"),
        (MANY.format(*"abcd"), "at most 3 entries"),
        ("[" * 10_000, "a dictionary in JSON or PLS"),
        ('{"a": "b", "a": "c"}', "each word once"),
        ("\x00", "a dictionary in JSON or PLS"),
        ("x" * (5 << 20), "at most 4194304 bytes"),
    ],
    ids=range(11),
)
def test_invalid_files_are_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidEntry, match=words):
        read_lexicon(text.encode(), 3)


def test_entries_of_a_text_are_selected() -> None:
    words = ("New York", "SQL", "重庆", "cafe\u0301")
    assert occurring(words, "in NEW\n york, sql's, mysql") == words[:2]
    assert occurring(words, "重庆的CAFÉ") == words[2:]
