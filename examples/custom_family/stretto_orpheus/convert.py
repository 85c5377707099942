"""Conversion of the Orpheus release, a Llama model in the transformers layout; its tensors keep their names.

The release is https://huggingface.co/canopylabs/orpheus-3b-0.1-ft. `--codec` is a folder with
https://huggingface.co/hubertsiuzdak/snac_24khz. Text and codes share an embedding table, which is also the head.
"""

from typing import Literal

from transformers import LlamaConfig

from stretto.errors import CheckpointError
from stretto.family.conversion import AUDIO, Contents, Converted, Release, Tokenizer, common_record, unchanged
from stretto.family.layers import LlamaLayers, layers_plan
from stretto.family.sections import Integer
from stretto_orpheus.family import MARKERS, ROWS_PER_FRAME, OrpheusVocabulary
from stretto_orpheus.snac import published_shape

GENERATION = AUDIO
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# tokens of the first id after text and of the first code
FIRST = "<custom_token_0>"
CODE_0 = "<custom_token_10>"
# Tokens of the markers in the tokenizer.
SPELLED = {
    "begin_of_text": "<|begin_of_text|>",
    "end_of_turn": "<|eot_id|>",
    "speech": "<custom_token_1>",
    "end_of_speech": "<custom_token_2>",
    "human": "<custom_token_3>",
    "end_of_human": "<custom_token_4>",
    "ai": "<custom_token_5>",
    "pad": "<custom_token_7>",
}
assert SPELLED.keys() == MARKERS.keys()


class Config(LlamaLayers):
    """config.json of a release."""

    defaults = LlamaConfig

    model_type: Literal["llama"]
    vocab_size: Integer
    tie_word_embeddings: bool


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint, with all tensors as published."""
    config = Config.read(contents.config)
    codebook_size = published_shape(release.codec)[1] if release.codec else OrpheusVocabulary.codebook_size
    vocab = vocabulary(config, contents.tokenizer, codebook_size)
    has_head = not config.tie_word_embeddings
    record = config.record | common_record("orpheus", vocab, config.vocab_size, contents, has_head)
    tables = dict.fromkeys((EMBEDDINGS, HEAD) if has_head else (EMBEDDINGS,), (config.vocab_size, config.hidden_size))
    return Converted(record, unchanged(tables) | layers_plan(config.shapes, "model."), () if has_head else (HEAD,))


def vocabulary(config: Config, tokenizer: Tokenizer, codebook_size: int) -> OrpheusVocabulary:
    """Return the vocabulary; raise CheckpointError if a marker is missing or the table has too few rows."""
    ids = tokenizer.ids_of((*SPELLED.values(), FIRST, CODE_0), config.vocab_size)
    least = ids[CODE_0] + ROWS_PER_FRAME * codebook_size
    if config.vocab_size < least:
        raise CheckpointError(f"config.json: vocab_size: expected at least {least}, got {config.vocab_size}")
    return OrpheusVocabulary(
        vocab_size=config.vocab_size,
        num_text_ids=ids[FIRST],
        first_code=ids[CODE_0],
        codebook_size=codebook_size,
        markers={name: ids[spelling] for name, spelling in SPELLED.items()},
        max_model_len=min(config.max_position_embeddings, OrpheusVocabulary.max_model_len),
    )
