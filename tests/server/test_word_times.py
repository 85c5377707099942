"""Word times through the real server: a random aligner, CSM speech, and transcripts of the bundled model."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from stretto.aligning.align import split_words
from stretto.aligning.model import RATE, Aligner
from stretto.convert.make_repository import make
from stretto.launcher.installation import bundled_repository
from stretto.preprocessing.audio import resample
from tests.aligning.ctc_release import write_release
from tests.published_csm import convert, make_model
from tests.server.conftest import Server, served_repository
from tests.server.listening import Answer

pytestmark = [pytest.mark.server, pytest.mark.nightly]
TEXT = "The birch - canoe 42"
OPTIONS: dict[str, Any] = {"audio": {"temperature": 0.0, "min_rows": 9, "max_rows": 17}, "seed": 3, "words": "aligned"}
OPTIONS |= {"chunking": {"deterministic": True}}


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("aligner"))


@pytest.fixture(scope="module")
def served(aligner: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("csm")
    checkpoint, *_ = convert(folder, make_model())
    make(checkpoint, folder / "repository", {}, aligner=aligner)
    with served_repository(folder, folder / "repository") as server:
        yield server


def expected(aligner: Path, pcm: np.ndarray, sample_rate: int, text: str) -> list[tuple[str, float, float]]:
    """Align int16 samples in this process and return the words."""
    stored = np.rint(np.clip(pcm, -1, 1) * 32_767).astype(np.int16).astype(np.float32) / 32_768
    found = Aligner(aligner).times(resample(stored, sample_rate, RATE), split_words(text))
    return [(each.word, round(each.start_s, 2), round(each.end_s, 2)) for each in found]


def words_of(answer: Answer) -> list[tuple[str, float, float]]:
    assert answer.error is None
    return [
        (word["word"], round(word["start_s"], 2), round(word["end_s"], 2))
        for event in answer.events
        for word in event["words"]
    ]


def ask_until_aligned(server: Server, options: dict[str, Any], **inputs: Any) -> Answer:
    """Ask until the words of the reply are aligned; on a busy machine, the aligner may answer too late."""
    answer = server.ask(options, **inputs)
    while not answer.report["aligned"]:
        assert answer.error is None
        answer = server.ask(options, **inputs)
    return answer


def test_aligned_words_come_with_the_last_event(served: Server, aligner: Path) -> None:
    answer = ask_until_aligned(served, OPTIONS, text=TEXT)
    assert words_of(answer) == expected(aligner, answer.pcm, 24_000, TEXT)
    assert [len(event["words"]) for event in answer.events[:-1]] == [0] * (len(answer.events) - 1)
    assert answer.responses[-1].pcm is None
    plain = served.ask({name: value for name, value in OPTIONS.items() if name != "words"}, text=TEXT)
    np.testing.assert_array_equal(plain.pcm, answer.pcm)
    assert "aligned" not in plain.report


def test_words_that_cannot_be_aligned_are_omitted(served: Server) -> None:
    answer = served.ask(OPTIONS, text="a e i o u " * 20)
    assert (words_of(answer), answer.report["aligned"]) == ([], False)


def test_killed_aligner_only_loses_word_times(served: Server, aligner: Path) -> None:
    def processes() -> list[psutil.Process]:
        return [each for each in psutil.process_iter() if "stretto.aligning.worker" in _command(each)]

    (process,) = [each for each in processes() if str(served.folder) in _command(each)]
    os.kill(process.pid, signal.SIGKILL)
    answer = served.ask(OPTIONS, text=TEXT)  # the process starts again meanwhile, in time or not
    assert answer.error is None
    assert (len(words_of(answer)) > 0) == answer.report["aligned"]
    again = ask_until_aligned(served, OPTIONS, text=TEXT)
    assert words_of(again) == expected(aligner, again.pcm, 24_000, TEXT)
    assert served.state() == "ready"


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_served_transcript_has_aligned_word_times(aligner: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    make(bundled_repository() / "language_model/1/checkpoint", repository, {}, aligner=aligner)
    with served_repository(tmp_path, repository) as server:
        spoken = server.ask({"seed": 3}, text="the birch canoe slid on the smooth planks")
        assert all("end_s" not in word for event in spoken.events for word in event["words"])  # the family's own
        rate = np.array([24_000], np.int32)
        inputs = {"pcm_in": spoken.pcm.astype(np.float32), "sample_rate": rate, "task": "asr"}
        answer = ask_until_aligned(server, {"words": "aligned"}, **inputs)
        assert words_of(answer) == expected(aligner, spoken.pcm, 24_000, answer.text)
        served = server.ask(json.dumps({"words": "aligned"}), text="a cat")
        assert "aligned" not in served.report
