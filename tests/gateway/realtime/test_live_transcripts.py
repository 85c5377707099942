"""Transcripts of live audio in the realtime API: words come while one speaks, and a failure costs no turn."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from stretto_gateway.admission import Held
from stretto_gateway.config import Limits
from stretto_gateway.realtime.talk import LiveTurn
from tests.client.fake_server import PROFILE, Chunk, ErrorText, Request, Step, Taken, Until
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE, TALKS, call, silence, spoken
from tests.gateway.test_chat import task
from tests.patience import until_async

TRANSCRIPT = "conversation.item.input_audio_transcription"
VAD = {"type": "server_vad"}


class Listening:
    """A server that reads live audio: the first word follows 0.3 s of it, and the second one its end."""

    def __init__(self) -> None:
        self.heard = list[list[float]]()  # samples of each session
        self.has_word, self.is_complete = asyncio.Event(), asyncio.Event()

    def __call__(self, request: Request) -> list[Step]:
        if "session" not in request:
            self.heard.append([])
            first, last = Chunk(1, None, "fine"), Chunk(2, None, " then", is_final=True, is_last=True)
            return [
                Chunk(0, None, session=str(len(self.heard) - 1)),
                Until(self.has_word),
                first,
                Until(self.is_complete),
                last,
            ]
        record = json.loads(request["session"])
        pcm = self.heard[int(record["id"])]
        pcm += np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist()
        if len(pcm) > 0.3 * RATE:
            self.has_word.set()
        if record["is_last"]:
            self.is_complete.set()
        return [Taken(record["part"])]


LISTENS = PROFILE | {"reads_live_audio": True}


@pytest.mark.parametrize("detects_turns", [True, False])
async def test_live_words_arrive_while_the_user_speaks(start: Start, detects_turns: bool) -> None:
    """The first word comes before the turn ends. The server gets the turn without the silence before it."""
    listening = Listening()
    async with call(await start(listening, LISTENS), "gpt-4o-transcribe") as caller:
        if not detects_turns:
            await caller.update(type="transcription")
        said = np.concatenate([silence(2.0), spoken()]) if detects_turns else spoken()
        await caller.hear(said)
        events = await caller.until("conversation.item.input_audio_transcription.delta")
        kinds = [event.type for event in events]
        assert "input_audio_buffer.committed" not in kinds
        assert events[-1].delta == "fine"
        if detects_turns:
            assert kinds[-2:] == [
                "input_audio_buffer.speech_started",
                "conversation.item.input_audio_transcription.delta",
            ]
            await caller.hear(silence(1))
        else:
            await caller.send("input_audio_buffer.commit")
        events += await caller.until("conversation.item.input_audio_transcription.completed")
        assert events[-1].transcript == "fine then"
        named = [event.item_id for event in events if hasattr(event, "item_id")]
        assert len(set(named)) == 1
    sent = np.rint(np.array(listening.heard[0]) * 32768).astype(np.int16)
    whole = np.concatenate([said, silence(1)])
    begin = 0 if not detects_turns else round(RATE * events[0].audio_start_ms / 1000)
    assert 0.9 * len(spoken()) < len(sent) < len(spoken()) + 1.2 * RATE
    assert any((whole[at : at + len(sent)] == sent).all() for at in range(max(0, begin - 50), begin + 50))
    assert len(listening.heard) == 1


async def test_cleared_audio_is_not_transcribed(start: Start) -> None:
    listening = Listening()
    async with call(await start(listening, LISTENS), "gpt-4o-transcribe") as caller:
        await caller.update(type="transcription")
        await caller.hear(spoken()[:RATE])
        cleared = (await caller.until(f"{TRANSCRIPT}.delta"))[-1]
        await caller.ask("input_audio_buffer.clear")
        await caller.hear(spoken()[:RATE])
        await caller.send("input_audio_buffer.commit")
        completed = (await caller.until(f"{TRANSCRIPT}.completed"))[-1]
        assert completed.transcript == "fine then"
        assert completed.item_id != cleared.item_id
    assert len(listening.heard) == 2
    assert len(listening.heard[1]) == RATE


async def test_live_transcript_failure_is_reported_once(start: Start) -> None:
    refused = start([ErrorText("full: 4 sessions are open, try again")], LISTENS)
    async with call(await refused, "gpt-4o-transcribe") as caller:
        await caller.update(type="transcription")
        await caller.hear(spoken()[:RATE])
        failed = (await caller.until("conversation.item.input_audio_transcription.failed"))[-1]
        assert "try again" in failed.error.message
        await caller.send("input_audio_buffer.commit")
        committed = (await caller.until("conversation.item.done"))[0]
        assert committed.item_id == failed.item_id


def full() -> Held:
    """Return a memory account without room."""
    return Held(Limits(max_held_bytes=1))


async def test_turn_is_committed_if_its_transcript_runs_out_of_memory(start: Start) -> None:
    """The transcript fails once, and the next turn is another item with a transcript of its own."""
    running = await start(Listening(), LISTENS)
    sessions = running.app.state.gateway.sessions
    async with call(running, "gpt-4o-transcribe") as caller:
        await caller.update(VAD, type="transcription")
        buffered, sessions.held = sessions.held, full()
        await caller.hear(np.concatenate([spoken(), silence(1)]))
        events = await caller.until("conversation.item.done")
        assert [event.type for event in events] == [
            "input_audio_buffer.speech_started",
            f"{TRANSCRIPT}.failed",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
        ]
        assert "bytes are held" in events[1].error.message
        sessions.held = buffered
        await caller.hear(np.concatenate([spoken(), silence(1)]))
        completed = (await caller.until(f"{TRANSCRIPT}.completed"))[-1]
        assert completed.transcript == "fine then"
        assert events[1].item_id == events[3].item_id != completed.item_id


async def test_client_can_commit_after_an_out_of_memory_turn(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start(Listening(), LISTENS)
    async with call(running, "gpt-4o-transcribe") as caller:
        await caller.update(type="transcription")
        await caller.hear(spoken()[:RATE])
        delta = (await caller.until(f"{TRANSCRIPT}.delta"))[-1]
        with monkeypatch.context() as patched:
            patched.setattr(LiveTurn, "add", lambda turn, pcm: full().add(len(pcm)))
            await caller.hear(spoken()[:RATE])
            failed = (await caller.until(f"{TRANSCRIPT}.failed"))[-1]
            await caller.send("input_audio_buffer.commit")
            committed = (await caller.until("input_audio_buffer.committed"))[-1]
        assert delta.item_id == failed.item_id == committed.item_id
        await caller.hear(spoken()[:RATE])
        await caller.send("input_audio_buffer.commit")
        completed = (await caller.until(f"{TRANSCRIPT}.completed"))[-1]
        assert completed.item_id != failed.item_id


async def test_live_audio_is_freed_once_transcribed(start: Start) -> None:
    """While the turn goes on, only the buffer holds its samples."""
    running = await start(Listening(), LISTENS)
    held = running.app.state.gateway.sessions.held
    async with call(running, "gpt-4o-transcribe") as caller:
        await caller.update(type="transcription")
        await caller.hear(spoken()[:RATE])
        await until_async(lambda: held.num_bytes == 2 * RATE)
        await caller.send("input_audio_buffer.commit")
        await caller.until(f"{TRANSCRIPT}.completed")
    await until_async(lambda: not held.num_bytes)


async def test_disabling_transcription_ends_the_live_session(start: Start) -> None:
    """The slot is free at once, and a later turn is transcribed as an item of its own."""
    listening = Listening()
    running = await start(listening, LISTENS)
    admission = running.app.state.gateway.admission
    async with call(running, "gpt-4o-transcribe") as caller:
        await caller.update(type="transcription")
        await caller.hear(spoken()[:RATE])
        await caller.until(f"{TRANSCRIPT}.delta")
        assert admission.num_active == 1
        await caller.update(type="transcription", input={"transcription": None})
        await until_async(lambda: not admission.num_active)
        await caller.send("input_audio_buffer.commit")
        without = (await caller.until("input_audio_buffer.committed"))[-1]
        await caller.update(type="transcription", input={"transcription": {"model": "whisper-1"}})
        await caller.hear(spoken()[:RATE])
        await caller.send("input_audio_buffer.commit")
        completed = (await caller.until(f"{TRANSCRIPT}.completed"))[-1]
        assert completed.item_id != without.item_id
    assert len(listening.heard) == 2
    assert len(listening.heard[1]) == RATE


async def test_changing_turn_detection_starts_another_live_session(start: Start) -> None:
    """It gets the whole turn that the client commits, also the samples that the first session had."""
    listening = Listening()
    running = await start(listening, LISTENS)
    admission = running.app.state.gateway.admission
    async with call(running, "gpt-4o-transcribe") as caller:
        await caller.update(VAD, type="transcription")
        await caller.hear(spoken()[:RATE])
        first = (await caller.until(f"{TRANSCRIPT}.delta"))[-1]
        await caller.update(type="transcription")
        await until_async(lambda: not admission.num_active)
        await caller.hear(spoken()[RATE : 2 * RATE])
        await caller.send("input_audio_buffer.commit")
        completed = (await caller.until(f"{TRANSCRIPT}.completed"))[-1]
        assert completed.item_id != first.item_id, "the client has the words of the first transcription"
    assert len(listening.heard) == 2
    assert 1.5 * RATE < len(listening.heard[1]) <= 2 * RATE


async def test_turn_refused_for_memory_ends_its_live_session(start: Start) -> None:
    """Without memory for the item, the turn is refused, and its transcription ends."""
    running = await start(Listening(), TALKS | {"reads_live_audio": True})
    admission = running.app.state.gateway.admission
    async with call(running) as caller:
        await caller.update(input={"transcription": {"model": "whisper-1"}})
        await caller.hear(spoken()[:RATE])
        await caller.until(f"{TRANSCRIPT}.delta")
        running.app.state.gateway.sessions.held._bytes.limit = 1
        refused = await caller.ask("input_audio_buffer.commit")
        assert refused.type == "error"
        await until_async(lambda: not admission.num_active)


async def test_delayed_live_transcription_starts_at_the_turn_start(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples that arrive while too many recordings wait are not lost."""
    listening = Listening()
    async with call(await start(listening, LISTENS), "gpt-4o-transcribe") as caller:
        with monkeypatch.context() as patched:
            patched.setattr("stretto_gateway.realtime.talk.MAX_WAITING", 0)
            await caller.update(type="transcription")
            await caller.hear(spoken()[:RATE])
            await caller.update(type="transcription")  # answered once the samples have been handled
        assert not listening.heard
        await caller.hear(spoken()[RATE : 2 * RATE])
        await caller.send("input_audio_buffer.commit")
        await caller.until(f"{TRANSCRIPT}.completed")
    assert [len(pcm) for pcm in listening.heard] == [2 * RATE]


CONTINUES = PROFILE | {
    "options": ["beginning"],
    "max_audio_s": 300.0,
    "tasks": [task("asr", needs=["audio"]) | {"system": ["text"]}],
}


class Growing:
    """A server that reads whole recordings: its transcript has a word for each second, the last of which is open."""

    def __init__(self) -> None:
        self.requests = list[tuple[float, dict[str, Any]]]()  # seconds of audio, and options
        self.systems = list[str]()

    def __call__(self, request: Request) -> list[Step]:
        options = json.loads(request["options"])
        seconds = np.size(request["pcm_in"]) / RATE
        self.requests.append((seconds, options))
        self.systems += [turn["text"] for turn in json.loads(request.get("messages", "[]"))[:1]]
        words = [f"word{number} " for number in range(int(seconds))]
        kept = "".join(words[:-1])
        report = {"num_prompt_rows": len(words), "continuation": {"beginning": kept, "num_chars": len(kept)}}
        return [Chunk(0, None, "".join(words), is_final=True, is_last=True, more={"report": report})]


async def test_model_that_reads_whole_recordings_transcribes_live(start: Start) -> None:
    """Deltas arrive while the user speaks, and are the transcript; usage is that of the last request."""
    growing = Growing()
    running = await start(growing, CONTINUES)
    held = running.app.state.gateway.sessions.held
    async with call(running, "gpt-4o-transcribe") as caller:
        transcription = {"model": "gpt-4o-transcribe", "prompt": "Spree"}
        await caller.update(type="transcription", input={"transcription": transcription})
        await caller.hear(silence(4.2))  # the client reads at least 80 ms at once
        delta = (await caller.until(f"{TRANSCRIPT}.delta"))[-1]
        assert delta.delta == "word0 word1 word2 "
        # the buffer and the transcription have the samples, some of which may come after the text
        await until_async(lambda: held.num_bytes == 2 * 2 * round(4.2 * RATE))
        await caller.hear(silence(2.3))
        await caller.send("input_audio_buffer.commit")
        events = [delta, *await caller.until(f"{TRANSCRIPT}.completed")]
        deltas = [event.delta for event in events if event.type == f"{TRANSCRIPT}.delta"]
        assert "".join(deltas).strip() == events[-1].transcript == "word0 word1 word2 word3 word4 word5"
        assert events[-1].usage.input_tokens == 6
    assert [seconds for seconds, _ in growing.requests] == [2, 4, 6, 6.5]
    assert [options["beginning"] for _, options in growing.requests] == [
        "",
        "",
        "word0 word1 word2 ",
        "word0 word1 word2 word3 word4 ",
    ]
    assert set(growing.systems) == {"Spree"}
    await until_async(lambda: not held.num_bytes)
