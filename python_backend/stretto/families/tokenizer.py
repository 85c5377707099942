"""Subword tokenizer of a checkpoint: text to token ids, and token ids to bytes."""

from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders

from stretto.errors import CheckpointError
from stretto.untrusted_files import MAX_TEXT_BYTES, regular_file

FILE = "tokenizer.json"


class TextTokenizer:
    """Byte-level BPE, as in Qwen 3, OLMo 2 and SmolLM 2. Ids count from 0; a family adds the offset of its text ids.

    `spells_bytes` is True if tokens must be convertible to bytes, which requires a byte-level tokenizer. A model that
    generates no text may have any tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, spells_bytes: bool = True):
        if spells_bytes and not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise CheckpointError(f"{FILE}: expected a byte-level tokenizer, got {tokenizer.decoder}")
        tokenizer.encode_special_tokens = True  # "<|im_end|>" in a request means these characters
        self._tokenizer = tokenizer
        self._spelled: dict[int, bytes] = {}

    @classmethod
    def at(cls, checkpoint: Path, spells_bytes: bool = True) -> "TextTokenizer":
        """Load the tokenizer in a checkpoint's folder; CheckpointError if it is missing or unreadable."""
        path = checkpoint / FILE
        try:
            tokenizer = Tokenizer.from_file(str(regular_file(path, MAX_TEXT_BYTES)))
        except Exception as error:  # the library raises no narrower class
            raise CheckpointError(f"{path}: expected a tokenizer, got an error: {error}") from error
        return cls(tokenizer, spells_bytes)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`. Nothing is added, and names of special tokens are plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_words(self, text: str) -> tuple[list[int], list[int | None]]:
        """Return the token ids as `encode` does, and the index of each token's pre-token."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.word_ids

    def begins_added(self, text: str) -> bool:
        """Return True if `text` is a proper prefix of an added token that is spelled as its name."""
        return any(name.startswith(text) and len(name) > len(text) for name in self._added_names)

    @cached_property
    def longest_added(self) -> int:
        """Length in characters of the longest added token that is spelled as its name."""
        return max(map(len, self._added_names), default=0)

    @cached_property
    def _added_names(self) -> tuple[str, ...]:
        return tuple(name.decode() for name in self._added.values() if name)

    @property
    def tokens(self) -> dict[int, str]:
        """Spelling of each id in the alphabet of the BPE; added tokens unchanged."""
        return {token_id: token for token, token_id in self._tokenizer.get_vocab().items()}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token, possibly cut inside a character; empty for special and unused ids."""
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
        """Bytes of the tokens added to the BPE, which are spelled literally; empty for special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id: b"" if token.special else token.content.encode() for token_id, token in added.items()}


def _bytes_by_character() -> dict[str, int]:
    """Return the byte for each character of the byte-level BPE alphabet.

    Bytes that are printable in Latin-1 are represented by their own character, the others by U+0100 and following.
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _bytes_by_character()
