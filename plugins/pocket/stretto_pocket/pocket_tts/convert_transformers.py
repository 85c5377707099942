"""Conversion of Pocket TTS releases in transformers' layout, whose codec is in a folder of its own.

`PocketTTSForConditionalGeneration.save_pretrained` writes `config.json` and `model.safetensors`, and
`PocketTTSAudioTokenizerModel.save_pretrained` the codec. The last four rows of the embedding table are not of text:
only that of the beginning of a voice is read, and tokens with these ids are left out of the tokenizer. No config states
the changes to the text, so the default changes are used. Voices are in `embeddings/`, as in the authors' layout.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tokenizers

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Release, Tokenizer, integer
from stretto.untrusted_files import json_object
from stretto_pocket.pocket_tts import convert_layout
from stretto_pocket.pocket_tts.convert import EMBEDDINGS as AUTHORS_EMBEDDINGS
from stretto_pocket.pocket_tts.convert import SPEAKER
from stretto_pocket.pocket_tts.convert import convert as convert_authors
from stretto_pocket.pocket_tts.convert_layout import TABLE, TransformersRelease

__all__ = ["EMBEDDINGS", "GENERATION", "IS_BARE", "IS_FLOAT32", "convert"]

IS_BARE = True  # the tokenizer may be of any kind
IS_FLOAT32 = True  # no other dtype is accepted
EMBEDDINGS = TABLE
GENERATION = convert_layout.GENERATION
NAMES = ((AUTHORS_EMBEDDINGS, TABLE), (SPEAKER, "model.audio_prompt_proj.weight"))
PLACEHOLDERS = ("audio_prompt", "audio_latent", "audio_prompt_bos", "audio_bos")  # prefixes of `_token_id`


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including all voices in the release folder."""
    num_tokens, begin = text_ids(contents.config)
    parts = {
        AUTHORS_EMBEDDINGS: (TABLE, lambda table: table[: num_tokens + 1]),
        "flow_lm.bos_before_voice": (TABLE, lambda table: table[begin][None, None]),
    }
    layout = TransformersRelease(release, contents, "gelu_pytorch_tanh", NAMES, parts)
    if layout.num_steps != 1:  # the default of all releases; requests may have others
        raise CheckpointError(f"generation_config.json: num_flow_steps: expected 1, got {shown(layout.num_steps)}")
    tokenizer = text_tokenizer(contents.tokenizer, num_tokens)
    config = authors_config(layout, num_tokens)
    table = (num_tokens + len(PLACEHOLDERS), integer(contents.config, "hidden_size"))
    layout.check_language_model(config, {AUTHORS_EMBEDDINGS: table})
    read = replace(contents, config=config, tensors=layout.tensors, tokenizer=tokenizer)
    converted = convert_authors(release, read)
    return layout.renamed(replace(converted, tokenizer=tokenizer), tuple(map(layout.tensors.source, converted.dropped)))


def text_ids(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of text tokens and the id before a voice; raise CheckpointError if other ids are not last."""
    num_tokens = integer(config, "vocab_size") - len(PLACEHOLDERS)
    ids = {name: config.get(f"{name}_token_id") for name in PLACEHOLDERS}
    expected = range(num_tokens, num_tokens + len(PLACEHOLDERS))
    if any(type(token_id) is not int for token_id in ids.values()) or {*ids.values()} != {*expected}:
        names = ", ".join(f"{name}_token_id" for name in PLACEHOLDERS)
        last = f"{expected.start} to {expected.stop - 1}"
        raise CheckpointError(f"config.json: {names}: expected the last ids, {last}, got {shown([*ids.values()])}")
    return num_tokens, int(ids["audio_prompt_bos"] or 0)


def text_tokenizer(tokenizer: Tokenizer, num_tokens: int) -> Tokenizer:
    """Return the tokenizer without added tokens from id `num_tokens` on."""
    path = tokenizer.folder / "tokenizer.json"
    if tokenizer.size <= num_tokens or not path.exists():
        return tokenizer
    record = json_object(path)
    kept = [token for token in record.get("added_tokens") or () if token["id"] < num_tokens]
    record |= {"added_tokens": kept}
    vocabulary = tokenizers.Tokenizer.from_str(json.dumps(record)).get_vocab()
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    return Tokenizer(tokenizer.folder, 1 + max(tokens, default=-1), tokens, record)


def authors_config(layout: TransformersRelease, num_tokens: int) -> dict[str, Any]:
    """Return the contents of the YAML file of the same release in the authors' layout."""
    config = layout.config
    flow = layout.config["flow_head_config"]
    heads = integer(config, "num_attention_heads")
    return {
        "default_eos_threshold": layout.end_threshold,
        "flow_lm": {
            "insert_bos_before_voice": True,
            "transformer": {
                "d_model": integer(config, "hidden_size"),
                "attn_dim": heads * layout.head_dim,
                "num_heads": heads,
                "num_kv_heads": integer(config, "num_key_value_heads"),
                "num_layers": integer(config, "num_hidden_layers"),
                "dim_feedforward": integer(config, "intermediate_size"),
                "max_period": layout.theta,
            },
            "flow": {
                "type": layout.flow_type(),
                "dim": integer(flow, "hidden_size"),
                "depth": integer(flow, "num_hidden_layers"),
            },
            "lookup_table": {"n_bins": num_tokens},
        },
        "mimi": layout.mimi(),
    }
