"""VibeVoice-ASR through the real server and gateway, with OpenAI's client: passages, limits and the same text alone."""

from io import BytesIO
from pathlib import Path

import pytest
import soundfile

from lab.releases.random_tensors import split_weights
from plugins.vibevoice.tests.test_vibevoice_asr import PASSAGES, write_authors
from plugins.vibevoice.tests.vibevoice_asr_release import command, speech, write_release
from stretto.convert.command import main as convert
from tests.named_releases import transcribed_by_run
from tests.server.conftest import ServedCheckpoint, serves

# By night: test_vibevoice_asr.py of this plug-in compares prompts and ids; the reader has tests of its own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]


def checkpoint(folder: Path) -> Path:
    assert convert([*command(write_release(folder / "release", "scripted")), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


served = serves(checkpoint)


def ogg_file(seconds: float) -> bytes:
    file = BytesIO()
    soundfile.write(file, speech(seconds), 24_000, format="OGG", subtype="OPUS")
    return file.getvalue()


def test_served_transcript_has_passages(served: ServedCheckpoint) -> None:
    answer = served.server.ask('{"seed": 1}', audio=ogg_file(20.0))
    assert answer.error is None
    passages = [passage for event in answer.events for passage in event.get("passages", ())]
    expected = [
        {"text": part.text, "start_s": part.start_s, "end_s": part.end_s, "speaker": part.speaker} for part in PASSAGES
    ]
    assert passages == expected
    assert "".join(event["text"] for event in answer.events) == 'Good morning. Hello, "you". [Silence]'


@pytest.mark.parametrize("name", ["vibevoice-asr", "vibevoice-asr-microsoft"])
def test_run_transcribes_a_recording_with_a_release_of_the_hub(tmp_path: Path, name: str) -> None:
    """`stretto run` finds both layouts by their names, downloads, converts and serves them."""
    release = tmp_path / "release"
    if name == "vibevoice-asr":
        write_release(release, "scripted")
    else:
        write_authors(tmp_path, "scripted")
    split_weights(release, 3)
    text = transcribed_by_run(name, release, ogg_file(3.0), tmp_path)
    assert text.strip() == 'Good morning. Hello, "you". [Silence]'
