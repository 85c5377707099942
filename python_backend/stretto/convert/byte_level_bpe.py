"""Tokenizer of Qwen 2, from vocab.json and merges.txt, for releases without tokenizer.json.

Text is split as in Qwen 2's training. The package of Qwen3-TTS, opened on a directory, may use Mistral's expression
(`fix_mistral_regex` of transformers 4.57.3), which gives other ids for words in mixed case.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from stretto.errors import CheckpointError
from stretto.untrusted_files import MAX_TEXT_BYTES, json_object, regular_file

FILES = ("vocab.json", "merges.txt")
# https://huggingface.co/Qwen/Qwen2-7B/blob/main/tokenizer.json, `pre_tokenizer`.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in a folder, with the added tokens of tokenizer_config.json.

    Raises:
        CheckpointError: If a file is missing or invalid, or an added token would get another id than the file gives it.
    """
    vocabulary, merges = (folder / name for name in FILES)
    try:
        files = [str(regular_file(path, MAX_TEXT_BYTES)) for path in (vocabulary, merges)]
        tokenizer = Tokenizer(models.BPE.from_file(*files))
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


def _add(tokenizer: Tokenizer, folder: Path, number: str, token: object) -> None:
    content = token.get("content") if isinstance(token, Mapping) else None
    if not number.isdigit() or not isinstance(content, str) or not content:
        raise CheckpointError(f"{folder}: added_tokens_decoder: expected tokens by id, got {number!r}: {token!r}")
    assert isinstance(token, Mapping)
    tokenizer.add_tokens([AddedToken(content, special=bool(token.get("special")), normalized=False)])
    if tokenizer.token_to_id(content) != int(number):
        got = tokenizer.token_to_id(content)
        raise CheckpointError(f"{folder}: added token {content!r}: expected the next id, {got}, got {number}")
