"""Qwen3-ASR through the real server and its gateway: transcripts equal those of transformers."""

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from plugins.kyutai.tests.server.test_kyutai_clients import SERVICES, source
from plugins.qwen3_asr.lab.releases import LAYOUTS
from plugins.qwen3_asr.tests.published_qwen3_asr import Processor, Theirs, speech, streamed
from plugins.qwen3_asr.tests.test_qwen3_asr import write
from stretto.aligning.align import split_words
from stretto.aligning.model import Aligner
from stretto.convert.make_repository import make
from stretto.testing.releases import SmallRelease
from stretto_client import SpeechClient, Timeouts
from tests.aligning import ctc_release
from tests.named_releases import transcribed_by_run
from tests.patience import PATIENCE_S
from tests.server.conftest import ServedCheckpoint, served_repository
from tests.server.openai_client import gateway_port, openai_client

# By night: test_qwen3_asr.py compares the engine; prompts and the gateway's fields have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
SIZE = "1.7B"
NUM_IDS = 20
HINTS: dict[str, Any] = {"language": "en", "prompt": "user hello"}


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ctc_release.write_release(tmp_path_factory.mktemp("aligner"))


@pytest.fixture(scope="module")
def served(aligner: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("served")
    checkpoint = SmallRelease.written(folder / "published", SIZE, write).checkpoint
    make(checkpoint, folder / "repository", {}, aligner=aligner)
    with served_repository(folder, folder / "repository") as server:
        yield ServedCheckpoint(server, checkpoint)


def wav(pcm: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def expected(served: ServedCheckpoint, file: bytes, *hints: str) -> str:
    """Return the transcript of transformers for a file at 16 kHz, which begins without a language."""
    pcm, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    processor = Processor(served.checkpoint)
    ids, _ = Theirs(SIZE).reply(processor.inputs(pcm, *hints), NUM_IDS)
    text: str = processor.processor.decode(ids, return_format="transcription_only")
    assert text
    return text


async def test_transcripts_equal_those_of_transformers(served: ServedCheckpoint) -> None:
    file = wav(speech(3.3, 4))
    async with openai_client(served.server.grpc) as client:
        create = client.audio.transcriptions.create
        request: Any = {"model": "qwen3_asr", "file": ("a.wav", file), "extra_body": {"max_completion_tokens": NUM_IDS}}
        whole = await create(**request)
        assert whole.text == expected(served, file)
        stream = await create(**request, stream=True)
        events: list[Any] = [event async for event in stream]
        assert events[-1].text == whole.text
        hinted: Any = await create(**request, **HINTS, response_format="verbose_json")
        assert hinted.text == expected(served, file, "English", HINTS["prompt"]) != whole.text
        assert (hinted.language, round(hinted.duration, 1)) == ("english", 3.3)
        (segment,) = hinted.segments
        assert segment.text == hinted.text


async def test_words_have_the_times_of_the_aligner(served: ServedCheckpoint, aligner: Path) -> None:
    pcm = speech(6.0, 4)
    words: Any = None
    async with openai_client(served.server.grpc) as client, asyncio.timeout(PATIENCE_S):
        while words is None:  # on a busy machine, the aligner may answer too late
            transcript: Any = await client.audio.transcriptions.create(
                model="qwen3_asr",
                file=("a.wav", wav(pcm)),
                response_format="verbose_json",
                timestamp_granularities=["word"],
                extra_body={"max_completion_tokens": NUM_IDS},
            )
            words = transcript.words
    stored, _ = soundfile.read(io.BytesIO(wav(pcm)), dtype="float32")
    aligned = np.rint(stored * 32_767).astype(np.int16).astype(np.float32) / 32_768
    expected = Aligner(aligner).times(aligned, split_words(transcript.text))
    timed = [(word.word, word.start, word.end) for word in words]
    assert timed == [(word.word, pytest.approx(word.start_s), pytest.approx(word.end_s)) for word in expected]
    assert timed


async def test_script_of_kyutai_prints_the_words_of_a_turn(served: ServedCheckpoint, tmp_path: Path) -> None:
    """Its marker ends the turn; it waits for the marker, and not for the silence after it."""
    scripts = await asyncio.to_thread(source, "delayed-streams-modeling")
    made = await asyncio.to_thread(SERVICES.make)
    script = str(scripts / "scripts" / "stt_from_file_rust_server.py")
    python = str(made / "env" / "bin" / "python")
    pcm = np.int16(20_000 * np.sin(np.arange(60_000) ** 1.3 / 300))
    (tmp_path / "a.wav").write_bytes(wav(pcm, 24_000))
    async with gateway_port(served.server.grpc) as port:
        command = [python, script, str(tmp_path / "a.wav"), "--url", f"ws://127.0.0.1:{port}", "--rtf", "1000"]
        done = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(done.communicate(), 300)
    assert done.returncode == 0
    second = np.zeros(24_000, np.int16)

    async def turn() -> AsyncIterator[np.ndarray]:
        yield np.concatenate([second, pcm, *[second] * 5])

    async with SpeechClient(f"localhost:{served.server.grpc}", Timeouts(total_s=600)) as client:
        text = "".join([event.text async for event in client.transcribe_live(turn(), 24_000)])
    found = re.findall(r"^ *([0-9.]+) - *([0-9.]+)  (.+)$", printed.decode(), re.MULTILINE)
    assert len(found) > 3
    assert "".join(word for *_, word in found) == "".join(text.split())
    starts = [float(start_s) for start_s, *_ in found]
    assert starts == sorted(starts)
    assert float(found[-1][1]) == 8.5


async def test_turns_of_a_realtime_session_are_transcribed(served: ServedCheckpoint) -> None:
    """The model transcribes each turn with the hints of the session, the whole of it once it is committed."""
    pcm = np.int16(32_767 * speech(3.0, 4))
    async with openai_client(served.server.grpc) as client:
        transcription: Any = {"model": "gpt-4o-transcribe", **HINTS}
        session: Any = {"type": "transcription", "audio": {"input": {"transcription": transcription}}}
        session["audio"]["input"]["turn_detection"] = None
        async with client.realtime.connect(model="gpt-4o-transcribe") as connection:
            await connection.session.update(session=session)
            await connection.input_audio_buffer.append(audio=base64.b64encode(pcm.tobytes()).decode())
            await connection.input_audio_buffer.commit()
            async for event in connection:
                assert event.type not in ("error", "conversation.item.input_audio_transcription.failed"), event
                if event.type == "conversation.item.input_audio_transcription.completed":
                    assert event.transcript
                    break


async def test_turn_is_transcribed_while_it_is_spoken(served: ServedCheckpoint) -> None:
    """The client and the command yield the text of the authors' streaming, by a loop."""
    pcm = np.int16(32_767 * speech(7.0, 4))
    heard = (pcm / 32_768).astype(np.float32)
    processor = Processor(served.checkpoint)
    theirs = Theirs(SIZE)
    tokenizer = processor.processor.tokenizer

    def transcribe(samples: np.ndarray, beginning: str) -> str:
        inputs = processor.inputs(samples)
        ids = torch.cat([inputs["input_ids"], torch.tensor([tokenizer.encode(beginning)], dtype=torch.int64)], 1)
        reply, _ = theirs.reply(inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, NUM_IDS)
        return str(tokenizer.decode(reply, skip_special_tokens=True))

    address = f"localhost:{served.server.grpc}"
    requests = streamed(transcribe, tokenizer, heard)
    assert requests[-1][0], "a beginning is continued"

    async def pieces() -> AsyncIterator[np.ndarray]:
        for start in range(0, len(pcm), 1600):
            yield pcm[start : start + 1600]

    async with SpeechClient(address, Timeouts(total_s=600)) as client:
        assert (await client.profile()).transcribes_live
        events = [event async for event in client.transcribe_live(pieces(), 16_000, text={"max_rows": NUM_IDS})]
    assert "".join(event.text for event in events) == requests[-1][1]
    command = [sys.executable, "-m", "stretto", "transcribe", "-", "--rate", "16000", "--server", address]
    command += ["--options", json.dumps({"text": {"max_rows": NUM_IDS}})]
    done = subprocess.run(command, input=pcm.tobytes(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == requests[-1][1].strip()


@pytest.mark.parametrize(("name", "size"), [("qwen3-asr", "1.7B"), ("qwen3-asr-0.6b", "0.6B")])
def test_run_transcribes_a_recording_with_a_release_of_the_hub(tmp_path: Path, name: str, size: str) -> None:
    """`stretto run` finds the release by its name, downloads, converts and serves it."""
    file = wav(speech(2.0, 1))
    options = json.dumps({"text": {"max_rows": NUM_IDS}})
    LAYOUTS[f"Qwen/Qwen3-ASR-{size}"].command(tmp_path)
    text = transcribed_by_run(name, tmp_path / "release", file, tmp_path, "--options", options)
    checkpoint = next((tmp_path / "models").rglob("tokenizer.json")).parent
    pcm, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    processor = Processor(checkpoint)
    ids, _ = Theirs(size).reply(processor.inputs(pcm), NUM_IDS)
    assert text.strip() == processor.processor.decode(ids, return_format="transcription_only")
