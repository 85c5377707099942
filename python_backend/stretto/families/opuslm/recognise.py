"""Recognition of releases of OpusLM and its dialogue model from their lists of files."""

from stretto.family.recognition import QWEN_TOKENIZER, REPOSITORY, Listing, Match, Needed
from stretto.untrusted_files import MAX_YAML_BYTES, optional_entry

KEYS = {"token_list", "token_bias", "subword_model"}
WEIGHTS = (".pth",)
CODEC = Needed("ftshijt/espnet_codec_dac_large_v1.4_360epoch", ("*config.yaml", "*.pth"))
INPUT = Needed("espnet/xeus", ("*config.yaml", "*.pth", "*.mdl"))


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each release in a listing."""
    matches = []
    for name, folder, weights in listing.beside(WEIGHTS):
        record = listing.yaml(name, MAX_YAML_BYTES) if weights else {}
        if not record.keys() >= KEYS or optional_entry(record, "token_bias.codec") is None:
            continue
        family = "opuslm_dialogue" if record.get("model") == "dpo" else "opuslm"
        folder_name = folder.rstrip("/")
        tokenizer = record["subword_model"]
        if len(weights) > 1:
            refusal = f"OpusLM: expected one file *.pth beside {name}, got {', '.join(weights)}"
            matches.append(Match(family, part=folder_name, refusal=refusal))
            continue
        words = ["--model", f"{{repo}}/{weights[0]}", "--config", f"{{repo}}/{name}"]
        words += ["--codec", "{companion1}", "--ssl-tokenizer", "{companion2}"]
        companions = [CODEC, INPUT]
        requires = ["tokenizer"]
        if isinstance(tokenizer, str) and REPOSITORY.fullmatch(tokenizer):
            words += ["--tokenizer", "{companion3}"]
            companions = [CODEC, INPUT, Needed(tokenizer, QWEN_TOKENIZER)]
            requires = []
        files = (weights[0], name)
        matches.append(Match(family, files, tuple(words), folder_name, tuple(companions), requires=tuple(requires)))
    return matches
