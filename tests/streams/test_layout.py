"""An invalid layout of a plug-in is refused with the field and the value."""

import re
from typing import Any

import pytest

from stretto.streams.layout import FrameCodec, LatentSpec, StreamLayout

TWO = {"vocab_size": 30, "audio": (range(10, 20), range(20, 30)), "delays": (0, 1), "codebook_streams": (0, 1)}
ONE = {"vocab_size": 30, "audio": (range(10, 30),), "delays": (0,), "codebook_streams": (0,)}
LATENTS = {
    "vocab_size": 30,
    "audio": (range(10, 12),),
    "delays": (0, 0, 0),
    "codebook_streams": (1, 2),
    "latents": LatentSpec(num_words=2),
}


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (TWO, {"delays": (0,)}, "delays must start with 0 and have 2 entries, got (0,)"),
        (TWO, {"delays": (1, 0)}, "delays must start with 0 and have 2 entries, got (1, 0)"),
        (TWO, {"delays": (0, -1)}, "delays must be >= 0, got (0, -1)"),
        (TWO, {"vocab_size": 29}, "intervals must lie in [0, 29), got (range(10, 20), range(20, 30))"),
        (TWO, {"codebook_streams": (0, 2)}, "codebook_streams must be in [0, 2), got (0, 2)"),
        (TWO, {"extra": ((1,),)}, "extra must have 2 entries, one per stream, got 1"),
        (TWO, {"extra": ((1,), (30,))}, "extra ids must lie in [0, 30), got ((1,), (30,))"),
        (TWO, {"audio": (range(10, 20), range(20, 25))}, "all codebooks must have the same size"),
        (
            TWO,
            {"frame_codec": FrameCodec((range(10, 15), range(15, 20)))},
            "frames of several rows need one stream, a codebook without extra ids",
        ),
        (
            ONE,
            {"frame_codec": FrameCodec((range(10, 21), range(20, 31)))},
            "places must lie in range(10, 30), got (range(10, 21), range(20, 31))",
        ),
        (
            LATENTS,
            {"audio": (range(10, 13),)},
            "with latents, audio must be one interval of 1 or 2 ids, got (range(10, 13),)",
        ),
        (LATENTS, {"delays": (0, 0, 1)}, "streams 1 to 2 must be the words of latents, without delays"),
        (
            LATENTS,
            {"latents": LatentSpec(num_words=2, voice_ids=range(29, 31))},
            "voice_ids must lie in [0, 30), got range(29, 31)",
        ),
        (LATENTS, {"pad_id": 1}, "latents need the pad id 0 and one row per frame"),
    ],
)
def test_invalid_stream_layout_is_refused(layout: dict[str, Any], change: dict[str, Any], message: str) -> None:
    StreamLayout(**layout)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        StreamLayout(**(layout | change))


def test_rows_of_a_frame_have_equal_id_counts() -> None:
    with pytest.raises(ValueError, match="all places of a frame must have equally many ids"):
        FrameCodec((range(3), range(3, 5)))
