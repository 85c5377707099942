"""OpusLM's audio input: prompts contain the codes that the slow references give for the samples."""

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import soundfile

from stretto.encoders.xeus import read_centres
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests import published_xeus
from tests.published_checkpoints import convert, write_release
from tests.reference import xeus as reference
from tests.tiers import by_night

FAMILIES = ("opuslm", "opuslm-dialogue")


@pytest.fixture(scope="module")
def preprocessors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Preprocessor]:
    folder = tmp_path_factory.mktemp("hearing")
    xeus = published_xeus.write_xeus(folder / "xeus")
    opened = {}
    for name in FAMILIES:
        release = write_release(name, folder / name)
        opened[name] = Preprocessor(convert(name, release, folder / f"{name}-out", "--ssl-tokenizer", str(xeus)))
    return opened


def speech(seconds: float) -> np.ndarray:
    """Return samples at 16 kHz that are exact in 16 bits."""
    draw, time = np.random.default_rng(4), np.arange(round(16_000 * seconds)) / 16_000
    pcm = 0.2 * np.sin(2 * np.pi * (150 + 600 * time) * time) + 0.05 * draw.standard_normal(len(time))
    return (np.round(pcm * 32768) / 32768).astype(np.float32)


def codes_by_hand(pcm: np.ndarray, preprocessor: Preprocessor) -> list[list[int]]:
    """Return nine streams: the reference features' nearest centres and the codec's codes, cut to equal length."""
    features = reference.features(pcm, published_xeus.published_tensors(), published_xeus.CONFIG)
    semantic = reference.distances(features, read_centres(published_xeus.KMEANS)).argmin(1)
    acoustic = preprocessor.codec.encode(pcm)
    assert acoustic.shape[1] == len(semantic) + 1, "the codec hears a frame more"
    return np.concatenate([semantic[None], acoustic[:, : len(semantic)]]).tolist()


def rows(preprocessor: Preprocessor, task: str, turns: list[dict[str, Any]], **inputs: Any) -> np.ndarray:
    prompt = preprocessor.prepare(RawRequest(messages=json.dumps(turns), task=task, **inputs))
    delayed_tail = np.zeros((0, 8)) if prompt.delayed_tail is None else prompt.delayed_tail
    return np.concatenate([prompt.rows, np.pad(delayed_tail, ((0, 0), (1, 0)))])


@pytest.mark.parametrize(
    ("name", "task", "turns"),
    [
        ("opuslm", "asr", [{"role": "user", "AUDIO": "AUDIO"}]),
        *by_night(("opuslm", "audio_lm", [{"role": "user", "AUDIO": "AUDIO"}])),
        ("opuslm", "tts", [{"role": "system", "AUDIO": "AUDIO"}, {"role": "user", "text": "o"}]),
        *by_night(("opuslm-dialogue", "asr", [{"role": "user", "AUDIO": "AUDIO"}])),
        ("opuslm-dialogue", "dialogue", [{"role": "user", "AUDIO": "AUDIO", "text": "o"}]),
        *by_night(
            ("opuslm-dialogue", "speak", [{"role": "system", "AUDIO": "AUDIO"}, {"role": "assistant", "text": "o"}])
        ),
    ],
)
def test_audio_and_its_codes_give_the_same_rows(
    preprocessors: dict[str, Preprocessor], name: str, task: str, turns: list[dict[str, Any]]
) -> None:
    preprocessor, pcm = preprocessors[name], speech(0.61)
    codes = codes_by_hand(pcm, preprocessor)

    def said(kind: str, value: Any) -> list[dict[str, Any]]:
        return [
            {kind if key == "AUDIO" else key: value if key == "AUDIO" else turn[key] for key in turn} for turn in turns
        ]

    expected = rows(preprocessor, task, said("codes", codes))
    heard = rows(preprocessor, task, said("audio", "pcm_in"), pcm_in=pcm, sample_rate=16_000)
    assert np.array_equal(heard, expected)


def wav(pcm: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, pcm, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def test_voice_and_audio_turn_are_encoded_in_one_request(preprocessors: dict[str, Preprocessor]) -> None:
    preprocessor, voice, said = preprocessors["opuslm-dialogue"], speech(0.61), speech(0.4)
    given = [codes_by_hand(pcm, preprocessor) for pcm in (voice, said)]
    expected = rows(
        preprocessor, "dialogue", [{"role": "system", "codes": given[0]}, {"role": "user", "codes": given[1]}]
    )
    turns = [{"role": "system", "audio": "audio"}, {"role": "user", "audio": "pcm_in"}]
    heard = rows(preprocessor, "dialogue", turns, audio=wav(voice), pcm_in=said, sample_rate=16_000)
    assert np.array_equal(heard, expected)


def test_audio_files_are_assigned_to_turns_in_order(preprocessors: dict[str, Preprocessor]) -> None:
    preprocessor, heard = preprocessors["opuslm-dialogue"], [speech(seconds) for seconds in (0.3, 0.4, 0.5, 0.6)]
    codes = [codes_by_hand(pcm, preprocessor) for pcm in heard]
    roles = ("system", "user", "user", "user")
    expected = rows(
        preprocessor, "asr", [{"role": role, "codes": each} for role, each in zip(roles, codes, strict=True)]
    )
    inputs = ("audio", "audio", "pcm_in", "audio")
    turns = [{"role": role, "audio": name} for role, name in zip(roles, inputs, strict=True)]
    files = tuple(wav(pcm) for pcm, name in zip(heard, inputs, strict=True) if name == "audio")
    spoken = rows(preprocessor, "asr", turns, audio=files, pcm_in=heard[2], sample_rate=16_000)
    assert np.array_equal(spoken, expected)
    with pytest.raises(InvalidRequest, match=r"audio: expected one file per turn with audio, 3, got 2 files"):
        rows(preprocessor, "asr", turns, audio=files[:2], pcm_in=heard[2], sample_rate=16_000)
    with pytest.raises(
        InvalidRequest,
        match=r"audio\[2\]: expected a readable wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac file",
    ):
        rows(preprocessor, "asr", turns, audio=(*files[:2], b"RIFF"), pcm_in=heard[2], sample_rate=16_000)


def test_audio_file_prompt_matches_pcm_prompt(preprocessors: dict[str, Preprocessor]) -> None:
    preprocessor, pcm = preprocessors["opuslm"], speech(0.61)
    from_file = preprocessor.prepare(RawRequest(audio=wav(pcm)))
    from_samples = preprocessor.prepare(RawRequest(pcm_in=pcm, sample_rate=16_000))
    assert from_file.task == "asr"
    assert np.array_equal(from_file.rows, from_samples.rows)
    assert len(from_file.rows) == 3 + 30 + 8 + 1


def test_audio_shorter_than_a_window_is_refused(preprocessors: dict[str, Preprocessor]) -> None:
    with pytest.raises(InvalidRequest, match=r"pcm_in: expected audio of at least one frame \(0\.025 s\), got 399"):
        preprocessors["opuslm"].prepare(RawRequest(pcm_in=speech(399 / 16_000), sample_rate=16_000))
