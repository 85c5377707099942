"""The process that encodes live audio: its frames are those of the whole recording, and it is replaced if it dies."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from plugins.kyutai.tests.kyutai_release import make_checkpoint, replies
from stretto.codecs.mimi import load
from stretto.family.plugin import family_at
from stretto.family.prompting import Piece
from stretto.preprocessing.hearing import LOST, open_hearing
from stretto_kyutai.kyutai_stt.prompt import open_template
from tests.preprocessing.test_hearing import Client


@pytest.mark.slow
def test_audio_encoder_process_encodes_and_is_replaced(tmp_path: Path) -> None:
    silence = {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 1.0}
    checkpoint = make_checkpoint(tmp_path, stt_config=silence)
    family = family_at(checkpoint)
    pcm = replies()["pcm"].astype(np.float32)
    template = open_template(family, checkpoint, load(checkpoint / "codec"), "cpu")
    expected = list(template.write(family.tasks[0], (Piece("user", "audio", pcm=pcm),), None).track)
    hearing = open_hearing(family, checkpoint, "cpu")
    assert hearing is not None
    client = Client(hearing)
    client.send("one", 0, pcm[:5000])
    client.send("one", 1, pcm[5000:], is_last=True)
    assert client.ids("one", 2) == expected
    client.send("two", 0, pcm[:5000])
    client.until("two", 1)
    os.kill(hearing._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    client.send("two", 1, pcm[:5000])
    assert client.until("two", 2)[-1].lost == LOST
    client.send("three", 0, pcm, is_last=True)
    assert client.ids("three", 1) == expected
    hearing.close()
