"""Mimi's codes of a recording equal those of the authors' code."""

from pathlib import Path

import numpy as np

from plugins.kyutai.tests.kyutai_release import make_checkpoint, replies
from stretto.codecs.mimi import load
from stretto.codecs.mimi_encoder import MimiEncoder


def test_streaming_encoder_gives_the_codes_of_the_authors(tmp_path: Path) -> None:
    """The recording is longer than four windows of the transformer; all 32 codebooks equal transformers' codes."""
    codec = load(make_checkpoint(tmp_path) / "codec")
    pcm = replies()["pcm"].astype(np.float32)
    codes = MimiEncoder(codec).encode_all(pcm)
    assert codes.shape == (32, 42)
    assert (codes[:8] == replies()["mimi_codes"]).all()
    assert (codes == codec.encode(pcm)).all()
