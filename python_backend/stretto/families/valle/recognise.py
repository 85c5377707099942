"""Recognises the output of ESPnet's recipes for VALL-E."""

from stretto.families.opuslm.recognise import WEIGHTS
from stretto.family.recognition import Listing, Match
from stretto.untrusted_files import MAX_YAML_BYTES


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each model in a listing. Its codec and its tokenizer are separate releases."""
    found = []
    for name, folder, weights in listing.beside(WEIGHTS):
        if not weights or listing.yaml(name, MAX_YAML_BYTES).get("corelm") != "valle":
            continue
        refusal = (
            "" if len(weights) == 1 else f"VALL-E: expected one file *.pth beside {name}, got {', '.join(weights)}"
        )
        words = ("--model", f"{{repo}}/{weights[0]}", "--config", f"{{repo}}/{name}")
        requires = ("tokenizer", "codec")
        part = folder.rstrip("/")
        found.append(Match("valle", (weights[0], name), words, part, refusal=refusal, requires=requires))
    return found
