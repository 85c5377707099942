"""The speech cache: what is answered from it equals what was generated, and what it keeps is bounded and private."""

import asyncio
import base64
import dataclasses
import gc
import json
import random
import sys
import tracemalloc
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stretto_client import SpeechEvent, Word
from stretto_gateway import model_server, speech, speech_cache
from stretto_gateway.command import arguments, read_config
from stretto_gateway.config import MIB, CacheSettings, Limits
from stretto_gateway.encoding import MEDIA_TYPES
from stretto_gateway.speech_cache import ENTRY_BYTES, SHARES, CachedRequest, Entry, SpeechCache
from stretto_gateway.voice_store import VoiceStore
from tests.client.fake_server import PROFILE, Chunk, Request, Step, Until
from tests.gateway.conftest import Running, Start, sse_events
from tests.gateway.test_voices import CLONES
from tests.patience import PATIENCE_S, until_async
from tests.tiers import by_night

PATH = "/v1/audio/speech"
KEYS = ("the-key-of-the-first", "the-key-of-the-other")
BODY = {"model": "tts-1", "voice": "rms", "input": "A cat sat.", "response_format": "pcm"}
SEEDED = BODY | {"seed": 1}
SETTINGS = CacheSettings(16 * MIB)
MODEL = {"model": "tiny", "configuration": "sha256:00", "weights": "sha256:01"}
SAMPLES = 24_000


def noise(seed: Any, num_samples: int = SAMPLES) -> np.ndarray:
    """Return speech without faults, which differs by seed and ends in silence."""
    level = np.random.default_rng(seed).normal(size=num_samples - 1000).cumsum()
    return np.concatenate([10_000 * level / np.abs(level).max(), np.zeros(1000)]).astype(np.int16)


class Model:
    """Script of a server that speaks by the seed of the request, or at random, in two events with words.

    Attributes:
        report: Further entries of the last event.
    """

    def __init__(self, **report: Any) -> None:
        self.more = {"report": {"finish_reason": "stop", "num_frames": 4, "num_prompt_rows": 9, "seed": 5} | report}
        self.before = list[Step]()

    def __call__(self, request: Request) -> list[Step]:
        pcm = noise(json.loads(request["options"]).get("seed"))
        half = len(pcm) // 2
        first = Chunk(0, half, is_16_bit=True, pcm=pcm[:half], words=("A", "cat"))
        last = Chunk(1, half, is_16_bit=True, pcm=pcm[half:], words=("sat.",), is_final=True, is_last=True)
        last.more = self.more
        return [*self.before, first, last]


async def started(
    start: Start, model: Model | None = None, cache: CacheSettings | None = SETTINGS, **more: Any
) -> Running:
    """Start a gateway with a cache in front of a server that names its model."""
    running = await start(model or Model(), cache=cache, **more)
    running.behind.name = json.dumps(MODEL)
    return running


async def spoken(running: Running, key: str = "", /, **body: Any) -> httpx.Response:
    """Return the answer to a request; raise for an error."""
    async with running.http() as http:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await http.post(PATH, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer


def states(*answers: httpx.Response) -> list[str | None]:
    return [answer.headers.get("stretto-cache") for answer in answers]


def content(answer: httpx.Response) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the file of an answer and its events without audio; an Ogg file without its random serial number."""
    events = sse_events(answer.text) if "event-stream" in answer.headers["content-type"] else []
    file = b"".join(base64.b64decode(event.pop("audio", "")) for event in events) or answer.content
    pages = [page[:10] + page[14:18] + page[22:] for page in file.split(b"OggS")]
    return b"OggS".join(pages) if file.startswith(b"OggS") else file, events


FORMATS = ["mp3", *by_night(*(name for name in MEDIA_TYPES if name != "mp3"))]


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "stream", [{}, {"stream_format": "sse", "timestamps": True, "speed": 1.3}], ids=["audio", "sse"]
)
async def test_hit_equals_miss_equals_no_cache(start: Start, format_: str, stream: dict[str, Any]) -> None:
    """Every format and speed is answered from the entry of another one at the same rate."""
    body = SEEDED | {"response_format": format_, "sample_rate": 8000, "input": "A [laugh] cat sat."} | stream
    plain = await spoken(await started(start, cache=None), **body)
    running = await started(start)
    miss = await spoken(running, **body)
    other = await started(start)
    await spoken(other, **body | {"response_format": "flac", "sample_rate": 8000, "speed": 2})
    of_other = await spoken(other, **body)
    hit = await spoken(running, **body)
    assert states(plain, miss, hit, of_other) == [None, "miss", "hit", "hit"]
    assert "age" not in miss.headers
    assert int(hit.headers["age"]) >= 0
    assert len(plain.content) > 500
    assert content(plain) == content(miss) == content(hit) == content(of_other)
    for name in ("stretto-attempts", "stretto-ignored", "content-type"):
        assert plain.headers[name] == miss.headers[name] == hit.headers[name]
    assert len(running.behind.requests) == len(other.behind.requests) == 1


async def test_batch_is_answered_from_the_cache(start: Start) -> None:
    running = await started(start)
    batch = SEEDED | {"items": [{"input": "A cat sat."}, {"input": "A dog."}]}
    del batch["input"]
    async with running.http() as http:
        first, second = [(await http.post(f"{PATH}/batch", json=batch)).json()["results"] for _ in range(2)]
    assert first == second
    assert [result["status"] for result in first] == ["success"] * 2
    assert len(running.behind.requests) == 2


@pytest.mark.parametrize(
    "change",
    [{"input": "A cat sat!"}, {"seed": 2}, {"voice": "slt"}, {"check": "off"}, {"sample_rate": 16_000}, {"hold_s": 5}],
    ids=str,
)
async def test_other_request_is_generated(start: Start, change: dict[str, Any]) -> None:
    running = await started(start)
    answers = [await spoken(running, **body) for body in (SEEDED, SEEDED | change, SEEDED, SEEDED | change)]
    assert states(*answers) == ["miss", "miss", "hit", "hit"]


@pytest.mark.parametrize(
    ("body", "also", "expected"),
    [
        (BODY, (), [None, None]),
        (BODY | {"cache": True}, (), ["miss", "hit"]),
        (BODY, ("seedless",), ["miss", "hit"]),
        (SEEDED | {"cache": False}, ("seedless",), [None, None]),
        (SEEDED | {"ref_audio": "AAAA"}, ("seedless",), [None, None]),
        (SEEDED | {"ref_audio": "AAAA", "cache": True}, (), ["miss", "hit"]),
        (SEEDED | {"ref_audio": "AAAA"}, ("voices",), ["miss", "hit"]),
        (BODY | {"ref_audio": "AAAA"}, ("voices",), [None, None]),
    ],
    ids=str,
)
async def test_random_and_private_speech_is_cached_only_on_request(
    start: Start, body: dict[str, Any], also: tuple[str, ...], expected: list[str | None]
) -> None:
    running = await started(start, cache=CacheSettings(16 * MIB, also=also), profile=CLONES)
    answers = [await spoken(running, **body) for _ in range(2)]
    assert states(*answers) == expected
    assert len(running.behind.requests) == (1 if "hit" in expected else 2)
    assert (answers[0].content == answers[1].content) == ("hit" in expected or "seed" in body)


async def test_another_recording_is_another_voice(start: Start) -> None:
    running = await started(start, cache=CacheSettings(16 * MIB, also=("voices",)), profile=CLONES)
    bodies = [SEEDED | {"ref_audio": audio, "ref_text": text} for audio in ("AAAA", "AAAB") for text in ("a", "b")]
    assert states(*[await spoken(running, **body) for body in bodies * 2]) == ["miss"] * 4 + ["hit"] * 4


async def test_each_key_has_its_own_entries(start: Start) -> None:
    running = await started(start, keys=KEYS)
    answers = [await spoken(running, key, **SEEDED) for key in KEYS * 2]
    assert states(*answers) == ["miss", "miss", "hit", "hit"]


@pytest.mark.slow
async def test_key_does_not_replace_the_entries_of_another(start: Start) -> None:
    running = await started(start, cache=CacheSettings(MIB), keys=KEYS)
    await spoken(running, KEYS[0], **SEEDED)
    for seed in range(2, 32):
        await spoken(running, KEYS[1], **SEEDED | {"seed": seed})
    assert states(await spoken(running, KEYS[0], **SEEDED)) == ["hit"]
    assert states(*[await spoken(running, KEYS[1], **SEEDED | {"seed": seed}) for seed in (31, 2)]) == ["hit", "miss"]


async def test_unfinished_replies_count_for_their_key(start: Start) -> None:
    model = Model()
    running = await started(start, model, cache=CacheSettings(MIB), keys=KEYS)
    gate = asyncio.Event()
    chunk = Chunk(0, 60_000, is_16_bit=True, pcm=noise(3, 60_000))
    running.behind.script = lambda request: [chunk, Until(gate)] if b"dog" in request["text"] else model(request)
    await spoken(running, KEYS[0], **SEEDED)
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(spoken(running, KEYS[1], **SEEDED | {"input": "A dog."})) for _ in range(9)]
        await until_async(lambda: len(running.behind.requests) == 10)
        answers = [await spoken(running, KEYS[0], **SEEDED | {"seed": seed}) for seed in (1, 2, 2)]
        for reader in readers:
            reader.cancel()
    assert states(*answers) == ["hit", "miss", "hit"]


async def test_reply_ends_before_a_slow_check_of_the_model(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await started(start, limits=Limits(max_active=1, drain_s=1))
    client = running.app.state.gateway.client
    server_name = client.server_name
    gate = asyncio.Event()
    asked_names = list[None]()

    async def slow() -> str:
        asked_names.append(None)
        if len(asked_names) == 2:
            await gate.wait()
        return str(await server_name())

    monkeypatch.setattr(client, "server_name", slow)
    monkeypatch.setattr(model_server, "READY_S", PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S / 2):
        assert states(await spoken(running, **SEEDED)) == ["miss"]
        assert states(await spoken(running, **SEEDED | {"seed": 2})) == ["miss"]
    gate.set()
    assert states(await spoken(running, **SEEDED)) == ["hit"]


async def test_hit_counts_as_use_and_not_as_generation(start: Start) -> None:
    running = await started(start, Model(input_audio_s=2.0), keys=KEYS)
    await spoken(running, KEYS[0], **SEEDED)

    async def usage() -> dict[str, Any]:
        async with running.http() as http:
            found = (await http.get("/v1/usage", headers={"authorization": f"Bearer {KEYS[0]}"})).json()
        return {name: found[name] for name in ("requests", "characters", "input_audio_s", "output_audio_s")}

    generated = await usage()
    registry = running.app.state.gateway.metrics.registry

    def figure(name: str) -> float | None:
        labels = {"family": "tiny", "task": "tts"} if name.startswith("audio") else {}
        return registry.get_sample_value(name, labels)

    await spoken(running, KEYS[0], **SEEDED)
    assert await usage() == {name: 2 * amount for name, amount in generated.items()}
    assert generated["output_audio_s"] == SAMPLES / 16_000
    names = (
        "audio_rtf_count",
        "gateway_cache_hits_total",
        "gateway_cache_misses_total",
        "gateway_cache_evictions_total",
    )
    assert [figure(name) for name in names] == [1, 1, 1, 0]
    assert 2 * SAMPLES < (figure("gateway_cache_bytes") or 0) < 2.5 * SAMPLES


async def test_ceiling_refuses_a_hit_before_its_text_is_read(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await started(start, ceilings=("requests=2/day",))
    assert states(*[await spoken(running, **SEEDED) for _ in range(2)]) == ["miss", "hit"]
    async with running.http() as http:
        monkeypatch.setattr(speech, "prepare_text", None)
        assert (await http.post(PATH, json=SEEDED)).status_code == 429


async def test_hit_needs_no_slot(start: Start) -> None:
    model = Model()
    running = await started(start, model, limits=Limits(max_active=2, max_waiting=2, drain_s=1))
    await spoken(running, **SEEDED)
    model.before.append(Until(gate := asyncio.Event()))
    async with asyncio.TaskGroup() as group:
        blocked = group.create_task(spoken(running, **SEEDED | {"seed": 2}))
        await until_async(lambda: len(running.behind.requests) == 2)
        waiting = group.create_task(spoken(running, **SEEDED | {"seed": 3}))
        await running.until(gateway_active=1, gateway_waiting=1)
        assert states(await spoken(running, **SEEDED)) == ["hit"]
        gate.set()
    assert states(blocked.result(), waiting.result()) == ["miss", "miss"]


@pytest.mark.parametrize(
    "report", [{"finish_reason": "length"}, {"faults": [{"fault": "hum", "start_s": 0.0}]}, {"unchecked": ["busy"]}]
)
async def test_cut_or_faulty_speech_is_not_kept(start: Start, report: dict[str, Any]) -> None:
    running = await started(start, Model(**report))
    assert states(*[await spoken(running, **SEEDED | {"check": "off"}) for _ in range(2)]) == ["miss", "miss"]
    assert await running.metric("gateway_cache_bytes") == 0


async def test_measured_fault_is_not_kept(start: Start) -> None:
    running = await started(start)
    running.behind.script = lambda _: [
        Chunk(0, 72_000, is_16_bit=True, pcm=np.zeros(72_000, np.int16), is_final=True, is_last=True)
    ]
    assert states(*[await spoken(running, **SEEDED) for _ in range(2)]) == ["miss", "miss"]


async def test_equal_requests_at_a_time_are_generated_and_cancelled_apart(start: Start) -> None:
    model = Model()
    running = await started(start, model)
    model.before.append(Until(gate := asyncio.Event()))
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(spoken(running, **SEEDED)) for _ in range(3)]
        await until_async(lambda: len(running.behind.requests) == 3)
        readers[0].cancel()
        await until_async(lambda: running.behind.num_cancelled == 1)
        gate.set()
    assert states(*[reader.result() for reader in readers[1:]]) == ["miss", "miss"]
    await until_async(lambda: not running.app.state.gateway.cache._checks)
    num_bytes = await running.metric("gateway_cache_bytes")
    assert 2 * SAMPLES < num_bytes < 2.5 * SAMPLES  # of one of the replies
    assert states(await spoken(running, **SEEDED)) == ["hit"]


@pytest.mark.parametrize("name", ["triton", json.dumps(MODEL | {"weights": None})])
async def test_model_without_digests_is_not_cached(start: Start, name: str) -> None:
    running = await started(start)
    running.behind.name = name
    assert states(*[await spoken(running, **SEEDED) for _ in range(2)]) == [None, None]


async def test_speech_of_an_adapter_is_not_cached(start: Start) -> None:
    """Other weights may have been loaded under its name."""
    running = await started(start)
    assert states(*[await spoken(running, **SEEDED, adapter="narrator") for _ in range(2)]) == [None, None]
    assert len(running.behind.requests) == 2


async def test_another_model_has_other_entries(start: Start) -> None:
    """Speech during which the model changes is not kept."""
    model = Model()
    running = await started(start, model)
    changed = json.dumps(MODEL | {"weights": "sha256:02"})
    for name in (json.dumps(MODEL), changed):
        running.behind.name = name
        assert states(*[await spoken(running, **SEEDED) for _ in range(2)]) == ["miss", "hit"]
    model.before.append(Until(gate := asyncio.Event()))
    async with asyncio.TaskGroup() as group:
        mixed = group.create_task(spoken(running, **SEEDED | {"seed": 2}))
        await until_async(lambda: len(running.behind.requests) == 3)
        running.behind.name = json.dumps(MODEL)
        gate.set()
    model.before.clear()
    assert states(mixed.result()) == ["miss"]
    await until_async(lambda: not running.app.state.gateway.cache._checks)
    for name in (changed, json.dumps(MODEL)):
        running.behind.name = name
        assert states(await spoken(running, **SEEDED | {"seed": 2})) == ["miss"]


async def test_preview_is_cached_and_in_a_language_of_the_model(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_gateway.voice_preview.SENTENCE", "A cat sat.")  # which the scripted speech fits
    profile = PROFILE | {"languages": ["german", "french"], "requires_language": True, "options": ["language"]}
    running = await started(start, profile=profile)
    async with running.http() as http:
        first, second = [await http.get("/v1/audio/voices/slt/preview") for _ in range(2)]
    assert first.content == second.content
    assert states(first, second) == ["miss", "hit"]
    (request,) = running.behind.requests
    assert json.loads(request["options"]).items() >= {"language": "german", "voice": "slt"}.items()


async def test_field_without_a_cache_has_no_effect(start: Start) -> None:
    running = await started(start, cache=None)
    assert (await spoken(running, **BODY | {"cache": True})).headers["stretto-ignored"] == "cache"
    strict = await started(start, cache=None, strict=True)
    async with strict.http() as http:
        answer = await http.post(PATH, json=BODY | {"cache": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache")


def cache_of(max_bytes: int, clock: list[float] | None = None) -> SpeechCache:
    now = clock or [0.0]
    return SpeechCache(CacheSettings(max_bytes, 10.0), False, CollectorRegistry(), lambda: now[0])


class Client:
    """Client of a server with the same name always."""

    async def server_name(self) -> str:
        return json.dumps(MODEL)


def asked(number: int) -> CachedRequest:
    return CachedRequest(bytes([number]), "", Client(), MODEL)  # type: ignore[arg-type]


async def events_of(num_samples: int, num_events: int = 4) -> Any:
    words = tuple(Word(f"word {index}", 0.5 * index, text_start=index) for index in range(3))
    for index in range(num_events):
        pcm = np.full(num_samples // num_events, index, np.int16)
        yield SpeechEvent(pcm, "an utterance", index, "audio", words=words, sample_rate=24_000)
    yield SpeechEvent(None, "an utterance", num_events, "audio", is_final=True, report={"finish_reason": "stop"})


async def stored(cache: SpeechCache, number: int, num_samples: int = 1000) -> bool:
    """Store a reply; return True if it can then be found."""
    sent = [event async for event in cache.record(asked(number), events_of(num_samples))]
    await asyncio.gather(*cache._checks)
    with cache.reading(asked(number)) as entry:
        if entry is None:
            return False
        replayed = [event async for event in cache.replay(entry)]
    for event, again in zip(sent, replayed, strict=True):
        assert (again.words, again.report, again.index) == (event.words, event.report, event.index)
        assert again.pcm is event.pcm is None or np.array_equal(again.pcm, event.pcm)
    return True


def size_of(cache: SpeechCache) -> int:
    return cache._shares.held


async def test_oldest_use_is_removed_for_space_and_for_age() -> None:
    clock = [0.0]
    cache = cache_of(64_000, clock)
    for number in range(3):
        assert await stored(cache, number)
    one = size_of(cache) // 3
    assert 2000 + ENTRY_BYTES < one < 64_000 // SHARES
    fit = 64_000 // one
    for number in range(3, fit):
        assert await stored(cache, number)
    with cache.reading(asked(0)) as entry:
        assert entry is not None
    assert await stored(cache, fit)
    numbers = [number for number in range(fit + 1) if number in held(cache)]
    assert numbers == [0, *range(2, fit + 1)]
    clock[0] = 10.5
    with cache.reading(asked(0)) as entry:
        assert entry is None
    assert 0 not in held(cache)


def held(cache: SpeechCache) -> list[int]:
    return [key[0] for key in cache._entries]


async def test_long_text_is_not_kept() -> None:
    cache = cache_of(64_000)
    assert not await stored(cache, 0, 64_000 // SHARES)
    assert size_of(cache) == 0


async def test_entry_that_is_read_keeps_its_place_and_its_bytes() -> None:
    cache = cache_of(ENTRY_BYTES + 5_000 * SHARES)
    assert await stored(cache, 0)
    with cache.reading(asked(0)) as entry:
        assert entry is not None
        for number in range(1, 40):
            await stored(cache, number)
        assert 0 in held(cache)
        cache._evict(asked(0).key)
        before = size_of(cache)
    assert size_of(cache) == before - entry.num_bytes


@pytest.mark.parametrize("num_entries", [20, 200])
async def test_space_is_made_without_a_look_at_every_entry(num_entries: int) -> None:
    cache = cache_of(1)
    with ExitStack() as stack:
        for number in range(num_entries):
            cache._settings = CacheSettings(1 << 30)
            await stored(cache, number)
            stack.enter_context(cache.reading(asked(number)))
        await stored(cache, 255)
        cache._settings = CacheSettings(size_of(cache))
        entry = Entry(b"new", "", 0.0)
        steps = Counter[str]()

        def count(frame: FrameType, event: str, _: Any) -> Any:
            steps[frame.f_code.co_filename] += event == "line"
            return count

        sys.settrace(count)
        try:
            assert cache._grow(entry, 10)
        finally:
            sys.settrace(None)
        assert 255 not in held(cache)
        assert steps[speech_cache.__file__] < 40


async def test_bytes_are_those_of_all_entries_in_use() -> None:
    """Random requests that end, break off, are read and are replaced, at the same time."""
    draw = random.Random(0)
    cache = cache_of(100_000)
    live = set[Any]()

    async def write(number: int) -> None:
        recorded = cache.record(asked(number), events_of(draw.choice([100, 1000, 4000, 9000])))
        num_events = draw.choice([1, 3, 9])
        async for _ in recorded:
            await asyncio.sleep(0)
            num_events -= 1
            if not num_events:
                break
        await recorded.aclose()

    async def read(number: int) -> None:
        with cache.reading(asked(number)) as entry:
            if entry is not None:
                live.add(entry)
                assert [event.index async for event in cache.replay(entry)] == list(range(5))
                live.discard(entry)

    for _ in range(150):
        work = [draw.choice([write, read, write])(draw.randrange(20)) for _ in range(8)]
        watched = asyncio.gather(*work)
        while not watched.done():
            assert 0 <= size_of(cache) <= 100_000
            await asyncio.sleep(0)
        await watched
    await asyncio.gather(*cache._checks)
    entries = cache._entries.values()
    assert len(entries) > 5
    assert size_of(cache) == sum(entry.num_bytes for entry in entries)
    assert {entry.num_users for entry in entries} == {1}


@pytest.mark.slow
async def test_account_is_the_memory_of_the_entries() -> None:
    cache = cache_of(64 * MIB)
    await stored(cache, 255)
    before = size_of(cache)
    gc.collect()
    tracemalloc.start()
    for number in range(100):
        await stored(cache, number, 20_000)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= size_of(cache) - before <= 1.1 * taken


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("1MiB", MIB), ("256 MiB", 256 * MIB), ("2GB", 2 * 10**9), ("1GiB", 1 << 30)]
)
def test_size_has_a_unit(text: str, num_bytes: int) -> None:
    config = read_config(arguments().parse_args(["--speech-cache", text, "--speech-cache-also", "seedless"]))
    assert config.cache == CacheSettings(num_bytes, also=("seedless",))
    assert read_config(arguments().parse_args([])).cache is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speech-cache", "64"], "expected at least 1MiB, as a whole number of MB, MiB, GB, GiB, got '64'"),
        (["--speech-cache", "1MB"], "expected at least 1MiB"),
        (["--speech-cache", "-1GiB"], "expected one argument"),
        (["--speech-cache-also", "all"], "invalid choice: 'all'"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments().parse_args(words)
    assert message in capsys.readouterr().err


def test_age_is_at_least_a_second() -> None:
    with pytest.raises(ValueError, match=r"--speech-cache-age: expected at least 1, got 0\.5"):
        read_config(arguments().parse_args(["--speech-cache-age", "0.5"]))


@pytest.mark.parametrize("text", ["A cat [voice:mine]sat.", "<thinking>A cat [voice:mine]sat.</thinking>"])
async def test_the_key_of_an_entry_has_the_voices_of_marks(start: Start, tmp_path: Path, text: str) -> None:
    voices = VoiceStore(tmp_path / "voices", 100)
    settings = dataclasses.replace(SETTINGS, also=("voices",))
    profile = CLONES | {"tags": ["<thinking>"]}  # which is no reasoning for a model that renders it
    running = await started(start, cache=settings, profile=profile, voices=tmp_path / "voices")
    body = SEEDED | {"input": text}
    stored = voices.add("everybody", "mine", "", "yes", b"RIFF")
    answers = [(await spoken(running, **body)).headers["stretto-cache"] for _ in range(2)]
    voices.remove("everybody", stored.id)
    voices.add("everybody", "mine", "", "yes", b"RIFX")
    answers.append((await spoken(running, **body)).headers["stretto-cache"])
    assert answers == ["miss", "hit", "miss"]
