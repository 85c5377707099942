"""Recognition of Bagpiper releases from their lists of files."""

from collections.abc import Mapping

from stretto.family.recognition import QWEN_TOKENIZER, Listing, Match, Needed
from stretto.untrusted_files import MAX_YAML_BYTES, optional_entry

TOKENIZER = Needed("Qwen/Qwen3-8B-Base", QWEN_TOKENIZER)
CODEC = Needed("hf-audio/xcodec-hubert-general", ("config.json", "preprocessor_config.json", "model.safetensors"))


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each release in a listing."""
    matches = []
    for name, folder, weights in listing.beside((".pt",)):
        record = listing.yaml(name, MAX_YAML_BYTES) if weights else {}
        codec = optional_entry(record, "multimodal_io.discrete_audio")
        if optional_entry(record, "model.model_hf_tag") is None or not isinstance(codec, Mapping):
            continue
        if len(weights) > 1:
            refusal = f"Bagpiper: expected one file *.pt beside {name}, got {', '.join(weights)}"
            matches.append(Match("bagpiper", part=folder.rstrip("/"), refusal=refusal))
            continue
        words = ["--model", f"{{repo}}/{weights[0]}", "--config", f"{{repo}}/{name}"]
        words += ["--tokenizer", "{companion1}", "--codec", "{companion2}"]
        matches.append(Match("bagpiper", (weights[0], name), tuple(words), folder.rstrip("/"), (TOKENIZER, CODEC)))
    return matches
