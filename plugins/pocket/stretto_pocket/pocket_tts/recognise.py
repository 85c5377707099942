"""Recognition of Pocket TTS releases; a repository contains a folder for each language and size."""

from collections.abc import Mapping
from pathlib import Path

from stretto.family.recognition import CONFIG, REPOSITORY, Listing, Match, Needed

WEIGHTS = "model.safetensors"
VOICES = "embeddings"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
SECTIONS = {"flow_lm", "mimi"}
PROCESSOR = "processor_config.json"
CODEC_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CONFIGS = Path(__file__).parent / "config"  # YAML files of the authors' package, pocket-tts 4.0.1


def packaged_config(name: str) -> Path | None:
    """Return the YAML file of the published release in the folder `name`; None if there is none."""
    path = CONFIGS / f"{name}.yaml"
    return path if path.is_file() else None


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each release in a listing."""
    if listing.json(CONFIG).get("model_type") == "pocket_tts":
        return [transformers_match(listing, "pocket_tts", f"{VOICES}/*.safetensors")]
    matches = []
    for name in sorted(path for path in listing.names if path.rpartition("/")[2] == WEIGHTS):
        folder = name.removesuffix(WEIGHTS)
        tokenizers = [f"{folder}{tokenizer}" for tokenizer in TOKENIZERS if f"{folder}{tokenizer}" in listing.names]
        voices = f"{folder}{VOICES}/*.safetensors"
        if tokenizers and listing.present(voices):
            matches.append(_match(listing, folder, (name, *tokenizers, voices)))
    return matches


def transformers_match(listing: Listing, family: str, *voices: str) -> Match:
    """Return the match for a release in transformers' layout.

    The codec is in the repository that the processor's config names. If it names none, the user must give a folder.
    """
    weights = listing.weights()
    missing = ([] if weights else [WEIGHTS]) + [name for name in TOKENIZERS[:1] if name not in listing.names]
    if missing:
        return Match(family, refusal=f"{family} in transformers format: no {', '.join(missing)}")
    files = (*weights, CONFIG, TOKENIZERS[0], *listing.present("generation_config.json", *voices))
    codec = listing.json(PROCESSOR).get("audio_tokenizer")
    name = str(codec.get("audio_tokenizer_name_or_path")) if isinstance(codec, Mapping) else ""
    if not REPOSITORY.fullmatch(name):
        return Match(family, files, ("--model", "{repo}"), requires=("codec",))
    needed = Needed(name, (CONFIG, *CODEC_WEIGHTS))
    return Match(family, files, ("--model", "{repo}", "--codec", "{companion1}"), companions=(needed,))


def _match(listing: Listing, folder: str, files: tuple[str, ...]) -> Match:
    """Return the match for the release in a folder (empty, or ending with `/`)."""
    folder_name = folder.rstrip("/")
    inside = [name for name in sorted(listing.names) if name.startswith(folder) and name.endswith(".yaml")]
    configs = [path for path in inside if "/" not in path[len(folder) :] and listing.yaml(path).keys() >= SECTIONS]
    words = ("--model", f"{{repo}}/{folder_name}" if folder_name else "{repo}")
    if configs:
        return Match("pocket_tts", (*files, configs[0]), (*words, "--config", f"{{repo}}/{configs[0]}"), folder_name)
    if packaged_config(folder_name.rpartition("/")[2]) is not None:
        return Match("pocket_tts", files, words, folder_name)
    refusal = f"Pocket TTS: {folder_name or 'the folder'} has no YAML file with {' and '.join(sorted(SECTIONS))}"
    return Match("pocket_tts", part=folder_name, refusal=refusal)
