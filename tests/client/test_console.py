"""Text on standard input and in arguments, in UTF-8 whatever the locale is."""

import argparse
import os
from pathlib import Path

import pytest

from stretto_client.console import TextDecoder, argument_path, argument_text, run

TEXT = "Grüße,\ndon’t 𝄞."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_decoded_however_it_is_cut(encoding: str) -> None:
    data = TEXT.encode(encoding)
    for cut in range(len(data) + 1):
        decoder = TextDecoder("a file")
        assert decoder.decode(data[:cut]) + decoder.decode(data[cut:]) + decoder.decode(b"", is_last=True) == TEXT
    assert TextDecoder("a file").decode(data, is_last=True) == TEXT


def test_big_endian_utf_16_is_recognised() -> None:
    assert TextDecoder("").decode(b"\xfe\xff" + TEXT.encode("utf-16-be"), is_last=True) == TEXT


def test_beginning_of_utf_8_is_not_held_back() -> None:
    decoder = TextDecoder("")
    assert [decoder.decode(data) for data in (b"", b"G", b"r\xc3", b"\xbc")] == ["", "G", "r", "ü"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "a file: can't decode byte 0xff at position 0 (line 1) as UTF-8"),
        (b"caf\xe9.", "a file: can't decode byte 0xe9 at position 3 (line 1) as UTF-8"),
        (b"\xef\xbb\xbfA\nB\ncaf\xe9.", "a file: can't decode byte 0xe9 at position 10 (line 3) as UTF-8"),
        ("Grüße".encode()[:3], "a file: can't decode byte 0xc3 at position 2 (line 1) as UTF-8"),
        (b"\xff\xfeA\0\n\0\0\xd8B\0", "a file: can't decode byte 0x00 at position 6 (line 2) as UTF-16"),
        (b"\xff\xfeA\0B", "a file: can't decode byte 0x42 at position 4 (line 1) as UTF-16"),
    ],
)
def test_position_of_undecodable_bytes_does_not_depend_on_cuts(data: bytes, message: str) -> None:
    for cut in range(len(data) + 1):
        decoder = TextDecoder("a file")
        said = ""
        try:
            for part in (data[:cut], data[cut:]):
                decoder.decode(part)
            decoder.decode(b"", is_last=True)
        except ValueError as error:
            said = str(error)
        assert said == message


@pytest.mark.parametrize("text", [TEXT, "", "-", "plain"])
def test_argument_is_read_as_utf_8(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert argument_text(text) == text
    as_latin_1 = text.encode().decode("latin-1")  # Python decodes arguments in the encoding of the locale
    monkeypatch.setattr(os, "fsencode", lambda word: word.encode("latin-1"))
    assert argument_text(as_latin_1) == text
    assert argument_text("café") == "café", "in the encoding of the locale"


def test_undecodable_argument_is_refused_with_the_position() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"^can't decode byte 0xe9 at position 3 \(line 1\) as UTF-8$"):
        argument_text(os.fsdecode(b"caf\xe9"))


def test_home_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"^~nobody-here/a\.wav: "):
        argument_path("~nobody-here/a.wav")


def test_error_of_a_file_is_not_taken_for_one_of_standard_output() -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        run(lambda: len(Path("nothing").read_bytes()))
