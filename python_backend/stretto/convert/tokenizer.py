"""Tokenizers of releases: tokenizer.json, or vocab.json and merges.txt of Qwen 2."""

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from stretto.errors import CheckpointError
from stretto.families.conversion import Tokenizer
from stretto.families.tokenizer import FILE as TOKENIZER_FILE
from stretto.families.tokenizer import TextTokenizer
from stretto.untrusted_files import MAX_TEXT_BYTES, json_object, regular_file, released_file

FILES = ("vocab.json", "merges.txt")
# https://huggingface.co/Qwen/Qwen2-7B/blob/main/tokenizer.json, `pre_tokenizer`.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Prefixes of a tokenizer's file names. Its folder may be a whole repository.
TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template")


def read_tokenizer(folder: Path, spells_bytes: bool = True) -> Tokenizer:
    """Read `tokenizer.json`, or build it from vocab.json and merges.txt.

    Args:
        folder: Folder of the tokenizer.
        spells_bytes: See `TextTokenizer`.

    Raises:
        CheckpointError: If there is no tokenizer, or one that the server cannot use.
    """
    made = None
    if (folder / TOKENIZER_FILE).exists() or not (folder / "vocab.json").exists():
        tokens = TextTokenizer.at(folder, spells_bytes).tokens
    else:
        tokenizer = read_byte_level_bpe(folder)
        tokens, made = TextTokenizer(tokenizer).tokens, json.loads(tokenizer.to_str())
    if not tokens:
        raise CheckpointError(f"{folder}: expected a tokenizer with tokens, got none")
    found = sorted(path.name for path in folder.iterdir() if path.name.startswith(TOKENIZER) and not path.is_dir())
    return Tokenizer(folder, 1 + max(tokens), tokens, made, tuple(released_file(folder, name) for name in found))


def read_byte_level_bpe(folder: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of vocab.json and merges.txt, with the added tokens of tokenizer_config.json.

    Text is split as in Qwen 2's training. Code of authors that opens a directory may use Mistral's expression instead
    (`fix_mistral_regex` of transformers 4.57.3), which gives other ids for words in mixed case.

    Raises:
        CheckpointError: If a file is missing or invalid, or an added token would get another id than the file gives it.
    """
    vocabulary, merges = (folder / name for name in FILES)
    try:
        files = [str(regular_file(path, MAX_TEXT_BYTES)) for path in (vocabulary, merges)]
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(*files))
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{folder}: expected {' and '.join(FILES)} of a tokenizer, got {error}") from error
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = json_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if not isinstance(added, Mapping):
        raise CheckpointError(f"{folder}: expected tokenizer_config.json with added_tokens_decoder, got {added!r}")
    for number, token in sorted(added.items(), key=lambda each: int(each[0]) if each[0].isdigit() else -1):
        _add(tokenizer, folder, number, token)
    return tokenizer


def _add(tokenizer: tokenizers.Tokenizer, folder: Path, number: str, token: object) -> None:
    content = token.get("content") if isinstance(token, Mapping) else None
    if not number.isdigit() or not isinstance(content, str) or not content:
        raise CheckpointError(f"{folder}: added_tokens_decoder: expected tokens by id, got {number!r}: {token!r}")
    assert isinstance(token, Mapping)
    tokenizer.add_tokens([AddedToken(content, special=bool(token.get("special")), normalized=False)])
    if tokenizer.token_to_id(content) != int(number):
        got = tokenizer.token_to_id(content)
        raise CheckpointError(f"{folder}: added token {content!r}: expected the next id, {got}, got {number}")
