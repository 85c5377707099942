"""Recognition of Magpie TTS releases by the names of their archives, whose contents are not read."""

from stretto.family.recognition import Listing, Match, Needed

CODEC_FILE = "nemo-nano-codec-22khz-1.89kbps-21.5fps.nemo"
CODEC = Needed("nvidia/nemo-nano-codec-22khz-1.89kbps-21.5fps", (CODEC_FILE,))
PREFIX = "magpie_tts"
SUFFIX = ".nemo"


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each archive in a listing. If there are several, each has its name as the part."""
    names = sorted(name for name in listing.names if name.startswith(PREFIX) and name.endswith(SUFFIX))
    has_codec = CODEC_FILE in listing.names
    codec = "{repo}" if has_codec else "{companion1}"
    return [
        Match(
            "magpie",
            (name, *listing.present(CODEC_FILE)),
            ("--model", f"{{repo}}/{name}", "--codec", f"{codec}/{CODEC_FILE}"),
            part=name.removesuffix(SUFFIX) if len(names) > 1 else "",
            companions=() if has_codec else (CODEC,),
        )
        for name in names
    ]
