"""Recognition of VoxCPM2 releases."""

from stretto.family.recognition import CONFIG, SINGLE, TOKENIZER, Listing, Match, unexpected

SECTIONS = {"lm_config", "encoder_config", "dit_config"}
ARCHITECTURE = "voxcpm2"
CODECS = ("audiovae.safetensors", "audiovae.pth")


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    if not config.keys() >= SECTIONS:
        return []
    architecture = config.get("architecture", ARCHITECTURE)
    codecs = [name for name in CODECS if name in listing.names]
    head = config["dit_config"]
    has_mean_head = isinstance(head, dict) and bool(head.get("dit_mean_mode"))
    for refused, refusal in (
        (architecture != ARCHITECTURE, unexpected("architecture", ARCHITECTURE, architecture)),
        (has_mean_head, "config.json: dit_config.dit_mean_mode: expected false"),
        (not codecs or SINGLE not in listing.names, f"VoxCPM2: expected {SINGLE} and {' or '.join(CODECS)}"),
    ):
        if refused:
            return [Match("voxcpm2", refusal=refusal)]
    files = (SINGLE, codecs[0], CONFIG, *listing.present("generation_config.json", *TOKENIZER))
    return [Match("voxcpm2", files, ("--model", "{repo}"))]
