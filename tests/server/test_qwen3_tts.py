"""Qwen3-TTS through the real server: the release's files, converter, repository, server, client.

Replies equal those of the slow reference for the checkpoint, with greedy sampling.
"""

import asyncio
import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from lab.releases.random_qwen3_codec import write_qwen3_codec
from lab.releases.random_qwen3_tts import small_config, write_release
from stretto.codecs.base import load_codec
from stretto.convert.command import main
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor
from stretto.testing.reference import ReferenceModel
from stretto_client import RecordedVoice, SpeechClient
from stretto_gateway.command import make_server
from stretto_gateway.config import GatewayConfig
from tests.codecs.qwen3_12hz.reference import speech
from tests.published_qwen3_tts import command
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.listening import Answer
from tests.server.published import check_sound, one_shot, prepared

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day the engine's tests, and test_speech.py

CODEBOOKS, CODES, NUM_FRAMES = 16, 64, 9  # as `random_qwen3_codec` has them
OPTIONS: dict[str, Any] = {
    "audio": {"temperature": 0.0, "max_rows": NUM_FRAMES},
    "chunking": {"first_frames": 2, "steady_frames": 4},
    "output": {"codes": True},
    "seed": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "whole": {"voice": "Ryan", "language": "English", "instruct": "low"},
    "streaming": {"voice": "eric", "text_mode": "streaming"},
}


@dataclass(frozen=True)
class ServedQwen3TTS(ServedCheckpoint):
    """Server for a release, and the reference for its replies."""

    def codes(self, options: dict[str, Any], **inputs: Any) -> np.ndarray:
        """Return codes [K, T] of the reply to a request, after the codes of the reference that it continues."""
        prompt = prepared(Preprocessor(self.checkpoint), options, inputs)
        family = family_at(self.checkpoint)
        rows, _ = ReferenceModel(self.checkpoint, family, family.max_model_len).reply(prompt)
        starts = np.array([[ids.start] for ids in family.layout.audio])
        reference = prompt.rows[len(prompt.rows) - prompt.num_reference_rows :].tolist()
        return np.array([*reference, *rows[:-1]])[:, :CODEBOOKS].T - starts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedQwen3TTS]:
    with serve(tmp_path_factory.mktemp("qwen3_tts"), "custom_voice") as served:
        yield served


@pytest.fixture(scope="module")
def cloning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedQwen3TTS]:
    with serve(tmp_path_factory.mktemp("qwen3_tts_base"), "base") as served:
        yield served


@contextmanager
def serve(folder: Path, kind: str, silent_frames: int = 0) -> Iterator[ServedQwen3TTS]:
    """Write, convert and serve a release of this kind, in whose checkpoint replies begin with `silent_frames`."""
    release = write_release(folder / "release", small_config(kind, codebooks=CODEBOOKS, codes=CODES))
    codec = write_qwen3_codec(release / "speech_tokenizer")
    checkpoint = folder / "converted"
    assert main([*command(release, checkpoint), "--codec", str(codec)]) == 0
    record = json.loads((checkpoint / "config.json").read_text())
    record["speech_vocabulary"]["silent_frames"] = silent_frames
    (checkpoint / "config.json").write_text(json.dumps(record))
    (checkpoint / "model.safetensors").symlink_to(next(checkpoint.glob("model-*.safetensors")))  # the reference's
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedQwen3TTS(server, checkpoint)


@pytest.mark.parametrize("case", CASES)
def test_served_qwen3_tts_streams_the_reference_codes(served: ServedQwen3TTS, case: str) -> None:
    options = OPTIONS | CASES[case]
    answer = served.server.ask(options, text="hello world")
    assert answer.error is None
    check(served, answer, served.codes(options, text="hello world"), 0)


def test_silent_first_frame_is_dropped_unless_it_is_asked_for(tmp_path: Path) -> None:
    """The codes of all frames, their number and the seed's reply are the same; the samples begin after the silence."""
    with serve(tmp_path, "custom_voice", silent_frames=1) as served:
        options: dict[str, Any] = {"max_audio_s": NUM_FRAMES / 12.5, "output": {"codes": True}, "seed": 3}
        whole = served.server.ask(options | {"leading_silence": True}, text="hello world")
        dropped = served.server.ask(options, text="hello world")
        assert whole.error is None
        assert dropped.error is None
        np.testing.assert_array_equal(dropped.codes, whole.codes)
        np.testing.assert_allclose(dropped.pcm, whole.pcm[1920:], rtol=0, atol=1e-5)
        assert dropped.report["num_frames"] == whole.report["num_frames"]
        assert dropped.report["audio_s"] == len(dropped.pcm) / 24_000
        for other in ({"temperature": 0.5}, {"instruct": "low"}):
            kept = served.server.ask(options | other, text="hello world")
            assert len(kept.pcm) == kept.codes.shape[1] * 1920


def test_served_voice_design_streams_the_reference_codes(tmp_path: Path) -> None:
    with serve(tmp_path, "voice_design") as served:
        options = OPTIONS | {"instruct": "a low, slow voice"}
        answer = served.server.ask(options, text="hello world")
        assert answer.error is None
        check(served, answer, served.codes(options, text="hello world"), 0)


def check(served: ServedQwen3TTS, answer: Answer, expected: np.ndarray, num_reference: int) -> None:
    """Check the answer against `expected` codes; the first `num_reference` belong to the inaudible reference."""
    np.testing.assert_array_equal(answer.codes, expected[:, num_reference:])
    codec = load_codec("qwen3_12hz", served.checkpoint, num_codebooks=CODEBOOKS)
    check_sound(answer.pcm, expected, codec, num_reference, answer.report["finish_reason"])
    assert len(answer.pcm) == answer.codes.shape[1] * 1920  # 24 kHz


def wav(pcm: np.ndarray, rate: int) -> bytes:
    """Return a file with these samples, unchanged."""
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def voice_of(text: str | None) -> str:
    """Return a conversation that requests speech in the voice of a file with transcript `text`."""
    said = {} if text is None else {"text": text}
    return json.dumps([{"role": "system", "audio": "audio", **said}, {"role": "user", "text": "hello world"}])


@pytest.mark.parametrize(
    ("said", "options"),
    [
        (None, {}),
        ("so it was", {"language": "english"}),
        ("so it was", {"text_mode": "whole"}),
    ],
    ids=["x-vector", "in context", "in context, whole"],
)
def test_served_cloned_voice_matches_the_reference(
    cloning: ServedQwen3TTS, said: str | None, options: dict[str, Any]
) -> None:
    """Its codes are the reference's, and its sound that of one decode of recording and reply: also the second time,
    when the voice is remembered."""
    options, recording = OPTIONS | options, wav(speech(1.3, 16_000), 16_000)
    expected = cloning.codes(options, messages=voice_of(said), audio=recording)
    num_reference = 17 if said else 0  # 1.3 s, the last frame begun
    assert expected.shape[1] > num_reference
    for _ in range(2):
        answer = cloning.server.ask(options, messages=voice_of(said), audio=recording)
        assert answer.error is None
        check(cloning, answer, expected, num_reference)


def test_concurrent_cloned_voices_match_unbatched_ones(cloning: ServedQwen3TTS) -> None:
    recordings = [wav(speech(seconds, 24_000), 24_000) for seconds in (0.4, 0.9, 2.1)]
    texts = ("one", None, "so it was")
    asked = [
        cloning.server.stream(OPTIONS, messages=voice_of(said), audio=recording)
        for said, recording in zip(texts, recordings, strict=True)
    ]
    answers = [stream.listen() for stream in asked]
    for answer, said, recording in zip(answers, texts, recordings, strict=True):
        assert answer.error is None
        expected = cloning.codes(OPTIONS, messages=voice_of(said), audio=recording)
        check(cloning, answer, expected, expected.shape[1] - answer_frames(answer))


def answer_frames(answer: Answer) -> int:
    """Return the number of audible frames."""
    return len(answer.pcm) // 1920


WRITTEN = "Hello, world! It's 12345 o'clock; caf\u00e9 \U0001f642 ok."
ALL_ROWS: dict[str, Any] = OPTIONS | {"audio": {"temperature": 0.0, "min_rows": 64, "max_rows": 64}, "voice": "eric"}


def write(served: ServedQwen3TTS, session: str, part: int, text: str, is_last: bool = False) -> Answer:
    record = {"id": session, "part": part, "is_last": is_last}
    return served.server.ask(text=text, session=json.dumps(record))


@pytest.fixture(scope="module")
def at_once(served: ServedQwen3TTS) -> Answer:
    """Return the answer to the same text when it is sent with the request."""
    answer = served.server.ask(ALL_ROWS | {"text_mode": "streaming"}, text=WRITTEN)
    assert answer.error is None
    return answer


@pytest.mark.parametrize("opening", [0, 3, 20], ids=["nothing first", "half a word first", "words first"])
def test_streamed_text_gives_the_same_speech_as_complete_text(
    served: ServedQwen3TTS, at_once: Answer, opening: int
) -> None:
    # Metrics are published periodically, so that the one of an earlier reply may still be there.
    served.server.until(lambda: served.server.metric("replies_without_words") == 0)
    stream = served.server.stream(ALL_ROWS | {"text_mode": "open"}, text=WRITTEN[:opening])
    responses = [stream.next()]
    assert responses[0].event is not None
    session = responses[0].event["session"]
    pieces = [WRITTEN[start : start + 3] for start in range(opening, len(WRITTEN), 3)]
    for part, piece in enumerate(pieces[:-1]):
        answer = write(served, session, part, piece)
        assert answer.error is None
        assert [event["part"] for event in answer.events] == [part]
    served.server.until(lambda: served.server.metric("replies_without_words") == 1)
    heard = 0
    while heard < 2:  # the frames of all words but the last arrive without it
        responses.append(stream.next())
        heard += responses[-1].pcm is not None
    assert write(served, session, len(pieces) - 1, pieces[-1], is_last=True).error is None
    answer = stream.listen()
    assert answer.error is None
    assert answer.report["held_s"] > 0
    answer.responses = [*responses, *answer.responses]
    np.testing.assert_array_equal(answer.codes, at_once.codes)
    np.testing.assert_allclose(answer.pcm, at_once.pcm, atol=1e-4)
    again = write(served, session, len(pieces), "more")
    assert again.error is not None
    assert "session.id: expected the id of an open streamed text" in again.error


def test_piped_text_is_spoken(served: ServedQwen3TTS, at_once: Answer, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "stretto_client", "speak", "-", "--server", f"localhost:{served.server.grpc}"]
    words += ["--out", str(tmp_path / "out.wav"), "--play", "off", "--options", json.dumps(ALL_ROWS), "--json"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for start in range(0, len(spelled := WRITTEN.encode()), 7):  # within characters, too
            process.stdin.write(spelled[start : start + 7])
            process.stdin.flush()
        process.stdin.close()
        said = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert said["report"]["num_frames"] == 64
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], at_once.pcm, atol=1e-4)


async def test_uploaded_voice_is_usable_by_its_id(cloning: ServedQwen3TTS, tmp_path: Path) -> None:
    """It sounds like the same recording sent with the request, and like the slow reference."""
    recording, words = wav(speech(1.3), 24_000), {"ref_text": "so it was", "name": "mine", "consent": "my own"}
    options = {"audio": OPTIONS["audio"], "seed": 3}
    listener = socket.create_server(("127.0.0.1", 0))
    server = f"localhost:{cloning.server.grpc}"
    gateway = make_server(GatewayConfig(server, voices=tmp_path / "voices"), listener)
    serving = asyncio.ensure_future(gateway.serve([listener]))
    while not gateway.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/audio"
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        voice = (await http.post("/voices", data=words, files={"audio_sample": ("me.wav", recording)})).json()["id"]
        request = {"input": "hello world", "voice": voice, "response_format": "pcm", **options}
        spoken = await http.post("/speech", json=request)
        refused = await http.post("/speech", json=request | {"voice": "alloy"})
        noise = await http.post("/voices", data=words, files={"audio_sample": ("me.wav", b"no sound")})
        quiet = wav(np.random.default_rng(0).normal(0, 3e-5, 48_000).astype(np.float32), 24_000)
        silent = await http.post("/voices", data=words, files={"audio_sample": ("me.wav", quiet)})
        kept = (await http.get("/voices")).json()["data"]
    gateway.should_exit = True
    await serving
    assert spoken.status_code == 200
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "voice")
    assert (noise.status_code, noise.json()["error"]["param"]) == (400, "audio_sample")
    assert silent.status_code == 400
    assert "expected a recording of a voice, got silence: -90 dBFS" in silent.json()["error"]["message"]
    assert [each["id"] for each in kept] == [voice]
    async with SpeechClient(server) as client:
        same = client.speak(
            "hello world",
            voice=RecordedVoice(recording, "so it was"),
            encoding="pcm_s16le",
            sample_rate=24_000,
            **options,
        )
        said = np.concatenate([event.pcm async for event in same if event.pcm is not None])
    codes = cloning.codes(options, messages=voice_of("so it was"), audio=recording)
    codec = load_codec("qwen3_12hz", cloning.checkpoint, num_codebooks=CODEBOOKS)
    pcm = one_shot(codec, codes, codes.shape[1] == 17 + NUM_FRAMES)[17 * 1920 :]
    heard = np.frombuffer(spoken.content, np.int16)
    for samples in (heard, said):
        np.testing.assert_allclose(samples / 32768, pcm, atol=2e-4)
