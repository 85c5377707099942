"""Conversion of PersonaPlex releases: names and shapes published by NVIDIA, Mimi, and voices.

https://huggingface.co/nvidia/personaplex-7b-v1: config.json, model.safetensors, the tokenizer, Mimi, and voices.tgz.
The hyperparameters come from the authors' code, and config.json may override them. The published depth transformer has
16 steps. Steps 8 to 15 would generate the user's codes, which are always given, so these steps are omitted.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.conversion import Contents, Converted, Release, Tokenizer, integer
from stretto.untrusted_files import read_json, released_file
from stretto_kyutai.kyutai_stt.convert import check_config
from stretto_kyutai.moshi import convert as moshi
from stretto_kyutai.moshi.family import MoshiVocabulary
from stretto_kyutai.personaplex.family import NAME, PersonaPlexVocabulary
from stretto_kyutai.personaplex.voices import VOICES, read_voices

IS_BARE = moshi.IS_BARE
TOKENIZER_KEY = moshi.TOKENIZER_KEY
EMBEDDINGS = moshi.EMBEDDINGS
AUTHORS_FORMAT = "NVIDIA's format, such as nvidia/personaplex-7b-v1"
MARKS = {"linears.15.weight": "PersonaPlex"}
PUBLISHED: dict[str, Any] = {**moshi.FIRST, "dep_q": 16}
EXPECTED: dict[str, tuple[Any, ...]] = {
    **moshi.EXPECTED,
    "model_type": (NAME, None),
    "depformer_weights_per_step_schedule": (None,),
}


located = moshi.located


def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer | None:
    """Return the tokenizer of a release whose config.json does not name the tokenizer file."""
    is_named = release.config is not None and TOKENIZER_KEY in read_json(release.config)
    return None if is_named else moshi.first_tokenizer(release)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including all voices and the release's own Mimi."""
    config = {**PUBLISHED, **contents.config}
    check_config(config, EXPECTED)
    if config["dep_q"] != integer(config, "n_q"):
        raise CheckpointError(f"config.json: dep_q: expected {config['n_q']}, one step each, got {config['dep_q']}")
    if integer(config, "context") < 2:
        raise CheckpointError(f"config.json: context: expected at least 2 rows, got {config['context']}")
    base = moshi.vocabulary({**config, "dep_q": config["n_q"] // 2})
    voices = read_voices(released_file(release.folder, VOICES), base, integer(config, "dim"))
    moshi_fields = {field.name: getattr(base, field.name) for field in fields(MoshiVocabulary)}
    vocabulary = PersonaPlexVocabulary(**moshi_fields, voices=tuple(voice for voice, _ in voices))
    # The authors' key ring buffer masks its oldest row, so attention sees one row fewer than `context`.
    config["context"] -= 1
    return moshi.converted(release, contents, config, vocabulary, NAME, [vectors for _, vectors in voices])
