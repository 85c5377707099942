"""Live transcription through the real server gives the text and times of the whole recording."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from plugins.kyutai.tests.kyutai_release import make_checkpoint
from stretto_client import ServerUnavailable, SpeechClient, SpeechEvent
from stretto_client.errors import RequestRefused
from stretto_client.live_speech import PartStream
from tests.server.conftest import ServedCheckpoint, Server, served_checkpoint
from tests.server.listening import Relay

# By night: test_hearing_process.py and tests/engine/test_live_sessions.py test the two processes.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
RATE = 24_000
PCM = (np.sin(np.arange(90_000) ** 1.3 / 300) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("live")
    checkpoint = make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


async def spoken(pcm: np.ndarray, sizes: Sequence[int], pause_s: float = 0.0) -> AsyncIterator[np.ndarray]:
    at = index = 0
    while at < len(pcm):
        size = sizes[index % len(sizes)]
        yield pcm[at : at + size]
        at, index = at + size, index + 1
        await asyncio.sleep(pause_s)


async def heard(events: AsyncIterator[SpeechEvent]) -> tuple[str, list[tuple[str, float, float | None]]]:
    received = [event async for event in events]
    words = [(word.word, word.start_s, word.end_s) for event in received for word in event.words]
    return "".join(event.text for event in received), words


async def test_live_transcripts_match_the_whole_recording(served: ServedCheckpoint) -> None:
    """Sessions with different paces and recordings run at the same time."""
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        assert (await client.profile()).reads_live_audio
        whole = await heard(client.transcribe((PCM, RATE)))
        half = await heard(client.transcribe((PCM[:40_000], RATE)))
        assert len(whole[1]) > 3
        assert (await client.profile()).pauses_s == (0.5, 1.0, 2.0, 3.0)
        of_whole = [event.pauses async for event in client.transcribe((PCM, RATE), pauses=True)]
        of_parts = [event.pauses async for event in client.transcribe_live(spoken(PCM, [1920]), RATE, pauses=True)]
        pauses = [np.array([row for rows in each for row in rows]) for each in (of_whole, of_parts)]
        assert pauses[0].shape == (-(-(len(PCM) + 1.5 * RATE) // 1920), 4)
        np.testing.assert_array_equal(*pauses)
        made = await asyncio.gather(
            heard(client.transcribe_live(spoken(PCM, [1920], 0.01), RATE)),
            heard(client.transcribe_live(spoken(PCM, [1, 5000, 333]), RATE)),
            heard(client.transcribe_live(spoken(PCM[:40_000], [len(PCM)]), RATE)),
            heard(client.transcribe_live(spoken(PCM, [len(PCM)]), RATE)),
        )
    assert made == [whole, whole, half, whole]


async def test_live_progress_reports_word_starts_ends_and_audio_position(served: ServedCheckpoint) -> None:
    """Each frame is sent only after the event for the frame before."""
    events, changed = list[SpeechEvent](), asyncio.Condition()

    async def speech() -> AsyncIterator[np.ndarray]:
        for frame in range(len(PCM) // 1920):
            yield PCM[1920 * frame : 1920 * (frame + 1)]
            async with changed:
                await changed.wait_for(lambda number=frame: len(events) > number)
        yield PCM[1920 * (len(PCM) // 1920) :]  # less than a frame

    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        _, words = await heard(client.transcribe((PCM, RATE)))
        async for event in client.transcribe_live(speech(), RATE, progress=True):
            async with changed:
                events += [event] * (event.transcribed_s is not None)
                changed.notify_all()
        with pytest.raises(RequestRefused, match=r"options\.progress: expected no value"):
            await heard(client.transcribe((PCM, RATE), progress=True))
    begun = [(word.word, word.start_s, word.end_s) for event in events for word in event.begun]
    ended = [(word.word, word.start_s, word.end_s) for event in events for word in event.words]
    assert ended == words
    assert begun == [(word, start_s, None) for word, start_s, _ in words]
    times = [event.transcribed_s or 0.0 for event in events]
    assert times == sorted(times)
    assert times[-1] >= len(PCM) / RATE


async def test_live_words_arrive_while_the_user_speaks(served: ServedCheckpoint) -> None:
    """The audio does not continue until the first words have arrived."""
    has_words, texts = asyncio.Event(), list[str]()

    async def speech() -> AsyncIterator[np.ndarray]:
        yield PCM
        await has_words.wait()
        yield PCM

    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        async for event in client.transcribe_live(speech(), RATE):
            texts.append(event.text)
            if event.text:
                has_words.set()
        assert event.report is not None
        assert event.report["finish_reason"] == "stop"
        assert event.report["input_audio_s"] == pytest.approx(2 * len(PCM) / RATE)


async def open_session(client: SpeechClient) -> tuple[AsyncIterator[SpeechEvent], str, PartStream]:
    events = client.transcribe_live(silence(), RATE)
    return events, (await anext(events)).session, client.parts()


async def silence() -> AsyncIterator[np.ndarray]:
    await asyncio.Event().wait()
    yield PCM


async def test_invalid_part_is_refused_without_ending_the_session(served: ServedCheckpoint) -> None:
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        whole = await heard(client.transcribe((PCM, RATE)))
        events, session, parts = await open_session(client)
        bad = PCM[:2000].copy()
        bad[7] = np.nan
        with pytest.raises(RequestRefused, match=r"session\.part: expected 0, the number of the next part, got 1"):
            await client.parts().write_audio(session, 1, (PCM[:9], RATE), False)
        async with parts:
            await parts.write_audio(session, 0, (PCM[:30_000], RATE), False)
            for pcm, rate, number, message in (
                (bad, RATE, 1, "pcm_in: expected finite samples"),
                (PCM, 16_000, 1, "sample_rate: expected 24000, as the session began, got 16000"),
                (PCM, RATE, 0, "session.part: expected 1, the number of the next part, got 0"),
                (PCM, RATE, 5, "session.part: expected 1, the number of the next part, got 5"),
            ):
                with pytest.raises(RequestRefused, match=message):
                    await parts.write_audio(session, number, (pcm, rate), False)
            with pytest.raises(RequestRefused, match=r"session\.id: expected the id of an open session"):
                await parts.write_audio("nobody", 0, (PCM, RATE), False)
            await parts.write_audio(session, 1, (PCM[30_000:], RATE), True)
        assert await heard(events) == whole
        with pytest.raises(RequestRefused, match=r"options.live|pcm_in: expected no value with options.live"):
            [event async for event in client.transcribe((PCM, RATE), live=True)]


async def test_lost_and_frozen_clients_do_not_disturb_other_sessions(served: ServedCheckpoint) -> None:
    """A client that reconnects in time gets the text of the whole recording, and so does everybody else."""
    long = np.tile(PCM, 3)
    direct = f"localhost:{served.server.grpc}"
    async with SpeechClient(direct) as client, Relay(served.server.grpc) as relay, SpeechClient(relay.address) as far:
        whole = await heard(client.transcribe((long, RATE)))
        frozen, _, parts = await open_session(client)
        has_word, is_cut = asyncio.Event(), asyncio.Event()

        async def interrupted() -> AsyncIterator[np.ndarray]:
            yield long[:90_000]
            await has_word.wait()
            relay.cut()
            is_cut.set()
            for at in range(90_000, len(long), 1920):
                yield long[at : at + 1920]

        async def listen() -> tuple[str, list[tuple[str, float, float | None]]]:
            received = []
            async for event in far.transcribe_live(interrupted(), RATE, resume_s=60.0):
                received.append(event)
                if event.text:
                    has_word.set()
            assert [event.index for event in received] == list(range(len(received)))
            words = [(word.word, word.start_s, word.end_s) for event in received for word in event.words]
            return "".join(event.text for event in received), words

        made = await asyncio.gather(
            listen(),
            heard(client.transcribe_live(spoken(long, [1920], 0.005), RATE)),
            heard(client.transcribe_live(spoken(long, [5000, 77]), RATE)),
            heard(client.transcribe((long, RATE))),
        )
        assert is_cut.is_set()
        assert made == [whole] * 4
        assert frozen is not None
        await parts.__aexit__()


async def test_served_live_session_validates_resume_s(served: ServedCheckpoint) -> None:
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        with pytest.raises(RequestRefused, match=r"options\.resume_s: expected seconds in \[0, 60\], got 61"):
            [event async for event in client.transcribe_live(spoken(PCM, [5000]), RATE, resume_s=61)]
        with pytest.raises(RequestRefused, match=r"options\.resume_s: expected no value \(only live sessions"):
            [event async for event in client.transcribe((PCM, RATE), resume_s=5)]


def hearing_pid(server: Server) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0") if path.exists() else []
        if b"stretto.preprocessing.hearing_worker" in words and str(server.repository).encode() in b" ".join(words):
            return int(path.parent.name)
    raise AssertionError("there is no hearing process")


async def test_encoder_process_death_ends_only_live_sessions(served: ServedCheckpoint) -> None:
    """They end as unavailable. A recording continues, and new sessions use the next process."""
    has_words = asyncio.Event()

    async def speech() -> AsyncIterator[np.ndarray]:
        yield PCM
        await has_words.wait()
        os.kill(hearing_pid(served.server), signal.SIGKILL)
        while True:
            yield PCM[:1920]
            await asyncio.sleep(0.02)

    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        whole = await heard(client.transcribe((PCM, RATE)))
        recording = asyncio.ensure_future(heard(client.transcribe((np.tile(PCM, 20), RATE))))

        async def listen() -> None:
            async for event in client.transcribe_live(speech(), RATE):
                if event.text:
                    has_words.set()

        with pytest.raises(ServerUnavailable, match="the process that encodes live audio has ended; try again"):
            await listen()
        assert (await recording)[0]
        assert await heard(client.transcribe_live(spoken(PCM, [5000]), RATE)) == whole
