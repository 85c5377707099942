"""A checkpoint's own subword tokenizer: text to token ids of its vocabulary, and a token to the bytes it stands for."""

from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders

from stretto.errors import CheckpointError
from stretto.untrusted_files import MAX_TEXT_BYTES, regular_file

FILE = "tokenizer.json"


class TextTokenizer:
    """A byte-level BPE, as Qwen 3, OLMo 2 and SmolLM 2 have. Ids count from 0; a family adds where its text begins.

    spells_bytes: whether tokens are to be told as bytes, for which it must be byte-level. Of a model that writes no
    text it may be any.
    """

    def __init__(self, tokenizer: Tokenizer, spells_bytes: bool = True):
        if spells_bytes and not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise CheckpointError(f"{FILE}: expected a byte-level tokenizer, got {tokenizer.decoder}")
        tokenizer.encode_special_tokens = True  # a caller who writes "<|im_end|>" means these characters
        self._tokenizer = tokenizer
        self._spelled: dict[int, bytes] = {}

    @classmethod
    def at(cls, checkpoint: Path, spells_bytes: bool = True) -> "TextTokenizer":
        """The tokenizer in a checkpoint's folder; CheckpointError where there is none that can be read."""
        path = checkpoint / FILE
        try:
            tokenizer = Tokenizer.from_file(str(regular_file(path, MAX_TEXT_BYTES)))
        except Exception as error:  # the library knows no other class
            raise CheckpointError(f"{path}: expected a tokenizer, got an error: {error}") from error
        return cls(tokenizer, spells_bytes)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, as it stands: nothing is added, and no name of a special token means that token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_words(self, text: str) -> tuple[list[int], list[int | None]]:
        """As `encode`, and the index of the pre-token that each token is of."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.word_ids

    def begins_added(self, text: str) -> bool:
        """Whether an added token that stands for its name begins with `text`, and goes on."""
        return any(name.startswith(text) and len(name) > len(text) for name in self._added_names)

    @cached_property
    def longest_added(self) -> int:
        """How many characters the longest name of an added token has that stands for it."""
        return max(map(len, self._added_names), default=0)

    @cached_property
    def _added_names(self) -> tuple[str, ...]:
        return tuple(name.decode() for name in self._added.values() if name)

    @property
    def tokens(self) -> dict[int, str]:
        """How each id is spelled in the alphabet of the BPE, added tokens as they are."""
        return {token_id: token for token, token_id in self._tokenizer.get_vocab().items()}

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, which may begin or end inside a character; none for a special or unused id."""
        spelled = self._spelled.get(token_id)
        if spelled is None:
            spelled = self._spelled[token_id] = self._spell(token_id)
        return spelled

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else bytes(BYTE_OF[character] for character in token)

    @cached_property
    def _added(self) -> dict[int, bytes]:
        """Tokens that were added to the BPE, which are spelled as they are; special ones say nothing."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id: b"" if token.special else token.content.encode() for token_id, token in added.items()}


def _bytes_by_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: bytes that Latin 1 prints are their own character, the others are U+0100 on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _bytes_by_character()
