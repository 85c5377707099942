"""Recognises Pocket TTS releases: a repository contains a folder for each language and size."""

from pathlib import Path

from stretto.families.recognition import CONFIG, Listing, Match

WEIGHTS, VOICES = "model.safetensors", "embeddings"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
SECTIONS = {"flow_lm", "mimi"}
CONFIGS = Path(__file__).parent / "config"  # YAML files of the authors' package, pocket-tts 4.0.1


def packaged_config(name: str) -> Path | None:
    """Return the YAML file of a published release, by the name of its folder; None if there is none."""
    path = CONFIGS / f"{name}.yaml"
    return path if path.is_file() else None


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each release in a listing."""
    if listing.json(CONFIG).get("model_type") == "pocket_tts":
        got = "Pocket TTS in transformers format is not read, because its codec is in another repository"
        return [Match("pocket_tts", refusal=f"{got}; expected kyutai/pocket-tts-without-voice-cloning")]
    found = []
    for name in sorted(each for each in listing.names if each.rpartition("/")[2] == WEIGHTS):
        folder = name.removesuffix(WEIGHTS)
        tokenizers = [f"{folder}{each}" for each in TOKENIZERS if f"{folder}{each}" in listing.names]
        voices = f"{folder}{VOICES}/*.safetensors"
        if tokenizers and listing.present(voices):
            found.append(_match(listing, folder, (name, *tokenizers, voices)))
    return found


def _match(listing: Listing, folder: str, files: tuple[str, ...]) -> Match:
    """Return the match for the release in a folder (empty, or ending with `/`)."""
    part = folder.rstrip("/")
    inside = [each for each in sorted(listing.names) if each.startswith(folder) and each.endswith(".yaml")]
    own = [each for each in inside if "/" not in each[len(folder) :] and listing.yaml(each).keys() >= SECTIONS]
    words = ("--model", f"{{repo}}/{part}" if part else "{repo}")
    if own:
        return Match("pocket_tts", (*files, own[0]), (*words, "--config", f"{{repo}}/{own[0]}"), part)
    if packaged_config(part.rpartition("/")[2]) is not None:
        return Match("pocket_tts", files, words, part)
    refusal = f"Pocket TTS: {part or 'the folder'} has no YAML file with {' and '.join(sorted(SECTIONS))}"
    return Match("pocket_tts", part=part, refusal=refusal)
