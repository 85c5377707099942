"""Conversion of PersonaPlex releases: names and shapes as published by NVIDIA, with Mimi and the voices.

https://huggingface.co/nvidia/personaplex-7b-v1: config.json, model.safetensors, the tokenizer, Mimi, and voices.tgz.
The authors' code has the hyperparameters; those in config.json override them. The release has a depth transformer of 16
steps. Steps 8 to 15 would generate the user's codes, which are always given, so these steps are left out.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.families.conversion import Contents, Converted, Release, Tokenizer
from stretto.families.kyutai_stt.convert import check_config, integer
from stretto.families.moshi import convert as moshi
from stretto.families.moshi.family import MoshiVocabulary
from stretto.families.personaplex.family import NAME, PersonaPlexVocabulary
from stretto.families.personaplex.voices import VOICES, read_voices
from stretto.untrusted_files import read_json, released_file

IS_BARE, TOKENIZER_KEY, EMBEDDINGS = moshi.IS_BARE, moshi.TOKENIZER_KEY, moshi.EMBEDDINGS
MARKS = {"linears.15.weight": "PersonaPlex"}
PUBLISHED: dict[str, Any] = {**moshi.FIRST, "dep_q": 16}
EXPECTED: dict[str, tuple[Any, ...]] = {
    **moshi.EXPECTED,
    "model_type": (NAME, None),
    "depformer_weights_per_step_schedule": (None,),
}


trained_dtype = moshi.trained_dtype


def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer | None:
    """Return the tokenizer of a release whose config.json does not name its file."""
    is_named = release.config is not None and TOKENIZER_KEY in read_json(release.config)
    return None if is_named else moshi.first_tokenizer(release)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with Mimi from the release's own file and all voices."""
    config = {**PUBLISHED, **contents.config}
    check_config(config, EXPECTED)
    if config["dep_q"] != integer(config, "n_q"):
        raise CheckpointError(f"config.json: dep_q: expected {config['n_q']}, one step each, got {config['dep_q']}")
    if integer(config, "context") < 2:
        raise CheckpointError(f"config.json: context: expected at least 2 rows, got {config['context']}")
    base = moshi.vocabulary({**config, "dep_q": config["n_q"] // 2})
    folder = release.model if release.model.is_dir() else release.model.parent
    voices = read_voices(released_file(folder, VOICES), base, integer(config, "dim"))
    own = {field.name: getattr(base, field.name) for field in fields(MoshiVocabulary)}
    known = PersonaPlexVocabulary(**own, voices=tuple(voice for voice, _ in voices))
    # The authors' ring of keys masks its oldest row, so attention sees a row less than their `context`.
    config["context"] -= 1
    return moshi.converted(release, contents, config, known, NAME, [vectors for _, vectors in voices])
