"""Tokens of streamed text equal the tokens of the complete text, for any division into parts."""

import random
import string

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stretto.errors import InvalidRequest
from stretto.family.text import MAX_PENDING_CHARS, SubwordStream, TextStream, TextTokenizer, without_leading_line_ends

# How Qwen 2 cuts text, and GPT 2, which does not look at case, digits or line ends alike.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "Hello, World! It's 12345 o'clock; we'RE here.",
    "camelCaseWords andHTTPServer2Go don't",
    "a  b   c \n \n  d\n\n\te \n",
    "cafe\u0301 q\u0323\u0307 q\u0307\u0323 e\u0301\u0307\u0323x d\u0307\u0323 \u0301\u0323",
    "你好，世界！今天 是2024年。한국어 \u1112\u1161\u11ab\u1100\u1173\u11af ภาษาไทย कि ক\u09c7\u09be",
    "🙂👩\u200d👩\u200d👧 ok 🇫🇷🇩🇪!!!\n...",
    "<think>so</think> <thi <|im_end|> <think",
    "",
    "   ",
]


def tokenizer(pattern: str | None) -> TextTokenizer:
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    made.pre_tokenizer = byte_level
    if pattern is not None:
        made.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS * 5, trainer)
    made.add_special_tokens(["<|im_end|>"])
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return TextTokenizer(made)


@pytest.fixture(scope="module", params=[QWEN, None], ids=["qwen2", "gpt2"])
def known(request: pytest.FixtureRequest) -> TextTokenizer:
    return tokenizer(request.param)


def streamed(known: TextTokenizer, pieces: list[bytes]) -> list[int]:
    stream = TextStream(known)
    return [token_id for piece in pieces for token_id in stream.push(piece)] + stream.close()


@pytest.mark.parametrize("text", TEXTS)
def test_text_split_at_any_byte_gives_the_same_tokens(known: TextTokenizer, text: str) -> None:
    whole, spelled = known.encode(text), text.encode()
    for cut in range(len(spelled) + 1):
        assert streamed(known, [spelled[:cut], spelled[cut:]]) == whole, cut


@pytest.mark.parametrize("text", TEXTS)
def test_text_stream_tokenizes_single_byte_chunks(known: TextTokenizer, text: str) -> None:
    assert streamed(known, [bytes([byte]) for byte in text.encode()]) == known.encode(text)


def test_random_texts_stream_like_whole_texts(known: TextTokenizer) -> None:
    chance = random.Random(5)
    alphabet = [
        *"aB1'., \n\t!<",
        "é",
        "e",
        "\u0301",
        "\u0323",
        "\u0307",
        "你",
        "🙂",
        "<think>",
        "'s",
        "\u1161",
        "\u1112",
    ]
    for _ in range(400):
        spelled = "".join(chance.choices(alphabet, k=chance.randrange(1, 14))).encode()
        cuts = sorted(chance.choices(range(len(spelled) + 1), k=chance.randrange(1, 5)))
        pieces = [spelled[a:b] for a, b in zip([0, *cuts], [*cuts, len(spelled)], strict=True)]
        assert streamed(known, pieces) == known.encode(spelled.decode()), pieces


def test_text_stream_emits_a_word_when_the_next_begins(known: TextTokenizer) -> None:
    stream = TextStream(known)
    assert stream.push(b"Hello") == []
    assert stream.push(b", ") == known.encode("Hello")
    assert stream.push(b"World") == known.encode(",")
    assert stream.close() == known.encode(" World")


@pytest.mark.parametrize("text", ["\n\nHello, World", " \r\n\t\n  Hello", "Hello\n\nWorld\n", "\n", "  Hello"])
def test_leading_line_breaks_are_removed_for_any_chunking(known: TextTokenizer, text: str) -> None:
    whole = known.encode(without_leading_line_ends(text))
    assert (whole == known.encode(text)) == (text in ("Hello\n\nWorld\n", "  Hello"))
    for size in (1, 2, 5, 100):
        stream, ids = SubwordStream(known, range(10_000)), []
        for start in range(0, len(text), size):
            new, stream = stream.after(text[start : start + size], is_last=False)
            ids += new
        assert ids + stream.after("", is_last=True)[0] == whole, size


def test_unbounded_leading_whitespace_is_refused(known: TextTokenizer) -> None:
    stream = SubwordStream(known, range(10_000))
    _, stream = stream.after(" " * MAX_PENDING_CHARS, is_last=False)
    with pytest.raises(InvalidRequest, match="text: expected a word that ends within 4096 characters, got 4097"):
        stream.after(" ", is_last=False)


def test_invalid_utf8_text_is_refused(known: TextTokenizer) -> None:
    with pytest.raises(UnicodeDecodeError):
        TextStream(known).push(b"\xff")
    stream = TextStream(known)
    stream.push("é".encode()[:1])
    with pytest.raises(UnicodeDecodeError):
        stream.close()


def test_text_stream_buffers_at_most_one_word(known: TextTokenizer) -> None:
    stream = TextStream(known)
    for _ in range(300):
        stream.push((string.ascii_lowercase[:5] + " ").encode())
    assert len(stream._pending) <= 7


def test_text_stream_searches_added_tokens_only_at_word_ends(
    known: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    begins_added = TextTokenizer.begins_added

    def count(tokenizer: TextTokenizer, text: str) -> bool:
        looked_at.append(text)
        return begins_added(tokenizer, text)

    monkeypatch.setattr(TextTokenizer, "begins_added", count)
    stream = TextStream(known)
    stream.push(b"x" * 4000 + b"<thi")
    assert stream.num_pending == len("<thi")
    assert "<thi" in looked_at
    assert len(looked_at) <= len("</think>"), "of 4,004 characters, with every part"
