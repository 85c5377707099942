"""Recognition of CosyVoice 3 releases, and refusal of earlier versions."""

from stretto.family.recognition import Listing, Match

CONFIG = "cosyvoice3.yaml"
MODEL = "llm.pt"
OLDER = ("cosyvoice2.yaml", "cosyvoice.yaml")
NETWORKS = ("flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v3.onnx")
BACKBONE = "CosyVoice-BlankEN"
VOICES = "spk2info.pt"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if CONFIG not in listing.names:
        older = sorted(listing.names & {*OLDER})
        return [Match("cosyvoice3", refusal=f"expected {CONFIG} of CosyVoice 3, got {older[0]}")] if older else []
    missing = [name for name in (MODEL, *NETWORKS) if name not in listing.names]
    if missing:
        return [Match("cosyvoice3", refusal=f"CosyVoice 3: {missing[0]} is missing")]
    tokenizer = (f"{BACKBONE}/*.json", f"{BACKBONE}/merges.txt", f"{BACKBONE}/vocab.json")
    needs = () if VOICES in listing.names else ("recording",)
    files = (CONFIG, MODEL, *NETWORKS, *listing.present(VOICES, *tokenizer))
    return [Match("cosyvoice3", files, ("--model", "{repo}"), needs=needs)]
