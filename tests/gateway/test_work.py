"""Work on a caller's bytes: after the slot, in turns, and ended with the request.

Each place that works in another thread awaits `Turns.run`. `PLACES` lists them all, and a new one is added with a
request that reaches it. Work on the event loop is limited by the sizes of bodies and events (docs/limits.md) and by
`tests/client/test_linear_time.py`.
"""

import ast
import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from stretto_client import markup
from stretto_client.fair_threads import CALLER, Turns
from stretto_gateway.config import Limits
from stretto_gateway.guard import Keys
from tests.client.fake_server import PROFILE, Until
from tests.gateway.conftest import SPOKEN, Running, Start
from tests.gateway.test_voices import KEYS
from tests.patience import PATIENCE_S, until_async
from tests.sources import parsed, walk

ROOT = Path(__file__).parents[2]
FOLDERS = ("client/stretto_client", "gateway/stretto_gateway", "python_backend/stretto/preprocessing")
# Names by which a program starts threads or processes.
STARTS = frozenset(
    "to_thread run_in_executor run_in_threadpool ThreadPoolExecutor ProcessPoolExecutor Thread Process Popen fork"
    " WorkerProcess create_subprocess_exec create_subprocess_shell start_new_thread subprocess".split()
)
# Files that start threads or processes, and why their work obeys the rule.
STARTERS = {
    "client/stretto_client/fair_threads.py": "the threads of the turns",
    "client/stretto_client/sinks.py": "plays audio at the user's own computer",
    "client/stretto_client/__main__.py": "reads the user's own standard input",
    "gateway/stretto_gateway/gateway.py": "exports traces once all requests have ended",
    "gateway/stretto_gateway/verification.py": "one process, in turns of `Admission`, which ends with its request",
    "gateway/stretto_gateway/realtime/end_of_turn.py": "checks the operator's file before the gateway starts",
    "python_backend/stretto/preprocessing/audio.py": "lanes with turns of hosts (`FairQueue`)",
    "python_backend/stretto/preprocessing/audio_worker.py": "a lane's process, which ends with its request",
    "python_backend/stretto/preprocessing/hearing.py": "encodes a part of each session in a job",
}

LONG = "A *cat* sat. " * 100
SPEECH: dict[str, Any] = {"model": "tts-1", "input": "A cat.", "response_format": "pcm"}
SPELLED = {"pronunciations": {"cat": "kat"}}
FASTER = '<speak>A cat <prosody rate="150%">sat here.</prosody></speak>'
SPEAKS = "/v1/audio/speech"
WORDS, VOICES = "/v1/audio/pronunciations", "/v1/audio/voices"
JOBS = "/v1/audio/jobs"
FORM = {"name": "mine", "consent": "my own"}
READS_LATIN = PROFILE | {"options": [*PROFILE.get("options", ()), "transliterate"], "max_text_chars": 60}
CLONES = [each | {"system": ["audio"]} if each["name"] == "tts" else each for each in PROFILE["tasks"]]


@dataclass(frozen=True)
class Place:
    """Place that works in another thread.

    Attributes:
        path: Path of a request that reaches it; empty if a session or `--check-with` reaches it within its slot.
        body: JSON of the request; None for a form that adds a voice.
        method: Method of the request.
        has_slot: True if the caller has to hold a slot. Files of the caller's own voices and words are read without.
    """

    path: str = ""
    body: Any = None
    method: str = "POST"
    has_slot: bool = True


QUESTION = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg=="}}]}]
HEARS = {
    "name": "hear", "needs": ["audio"], "also": ["text"], "speaks": False, "answers": "user", "has_history": True,
    "system": ["text"],
}  # fmt: skip
OWN_VOICE = SPEECH | {"voice": "voice_" + "0" * 32}
PLACES = {
    "stretto_client.markup.read_slices": Place(SPEAKS, SPEECH | {"input": LONG}),
    "stretto_client.markup.find_transliterated": Place(SPEAKS, SPEECH | {"input": "A cat sat by 王."}),
    "stretto_client.long_speech.cut": Place(SPEAKS, SPEECH | {"input": LONG}),
    "stretto_client.word_check.verdict": Place(),
    "stretto_gateway.speech.encoded": Place(SPEAKS, SPEECH | {"response_format": "mp3"}),
    "stretto_gateway.speech.parts": Place(SPEAKS, SPEECH | {"input": FASTER, "speed": 1.5}),
    "stretto_gateway.receipt_store.complete": Place(has_slot=False),
    "stretto_gateway.chat.decoded": Place("/v1/chat/completions", {"model": "tiny", "messages": QUESTION}),
    "stretto_gateway.realtime.reply._play": Place(),
    "stretto_gateway.realtime.end_of_turn.is_complete": Place(has_slot=False),
    "stretto_gateway.outgoing.resolve": Place(has_slot=False),
    "stretto_gateway.pronunciations.keep_occurring": Place(SPEAKS, SPEECH | SPELLED),
    "stretto_gateway.pronunciations.add_dictionary": Place(SPEAKS, SPEECH, has_slot=False),
    "stretto_gateway.pronunciations.get_pronunciations": Place(WORDS, None, "GET", has_slot=False),
    "stretto_gateway.pronunciations.put_pronunciations": Place(WORDS, {"cat": "kat"}, "PUT", has_slot=False),
    "stretto_gateway.pronunciations.delete_pronunciations": Place(WORDS, None, "DELETE", has_slot=False),
    "stretto_gateway.voices.list_voices": Place(VOICES, None, "GET", has_slot=False),
    "stretto_gateway.voices.keep_voice": Place(VOICES, None, "POST", has_slot=False),
    "stretto_gateway.voice_file.export_voice": Place(VOICES + "/voice_" + "0" * 32 + "/export", None, "GET", False),
    "stretto_gateway.voice_file.import_voice": Place(VOICES + "/import", None, "POST", has_slot=False),
    "stretto_gateway.voices.delete_voice": Place(VOICES + "/voice_" + "0" * 32, None, "DELETE", has_slot=False),
    "stretto_gateway.jobs.endpoints.create_job": Place(JOBS, {"input": "A cat."}, has_slot=False),
    "stretto_gateway.jobs.endpoints.list_jobs": Place(JOBS, None, "GET", has_slot=False),
    "stretto_gateway.jobs.endpoints.find_job": Place(JOBS + "/job_" + "0" * 32, None, "GET", has_slot=False),
    "stretto_gateway.jobs.endpoints.get_job": Place(has_slot=False),
    "stretto_gateway.jobs.endpoints.get_content": Place(has_slot=False),
    "stretto_gateway.jobs.endpoints.file_parts": Place(has_slot=False),
    "stretto_gateway.jobs.endpoints.cancel_job": Place(has_slot=False),
    "stretto_gateway.jobs.endpoints.delete_job": Place(has_slot=False),
    "stretto_gateway.jobs.work._work": Place(has_slot=False),
    "stretto_gateway.jobs.work._advance": Place(has_slot=False),
    "stretto_gateway.jobs.work._advance_locked": Place(has_slot=False),
    "stretto_gateway.catalogue.own": Place(SPEAKS, OWN_VOICE, has_slot=False),
    "stretto_gateway.catalogue._stored": Place(SPEAKS, SPEECH | {"voice": "mine"}, has_slot=False),
    "stretto_gateway.catalogue.recording": Place(has_slot=False),
}


def files() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each file that works for callers."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), parsed(path)


def names(tree: ast.AST) -> set[str]:
    """Return all names and attributes that a file uses, without those in imports."""
    nodes = list(walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


@pytest.mark.slow
def test_only_the_turns_and_lanes_start_threads_and_processes() -> None:
    starters = {path for path, tree in files() if names(tree) & STARTS}
    assert starters == STARTERS.keys(), "await `Turns.run`, or give the reason why the work obeys the rule"


def awaits_turn(node: ast.AST) -> bool:
    """Return True for `await POOL.run(…)`, but not within a pool (`super().run`)."""
    call = node.value if isinstance(node, ast.Await) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    return call.func.attr == "run" and not isinstance(call.func.value, ast.Call)


def test_every_place_is_listed() -> None:
    found = set()
    for path, tree in files():
        for function in walk(tree):
            if isinstance(function, ast.AsyncFunctionDef) and any(map(awaits_turn, walk(function))):
                module = ".".join(Path(path).with_suffix("").parts[1:])
                found.add(f"{module}.{function.name}")
    assert found == PLACES.keys()


async def test_no_endpoint_runs_in_threads_of_the_framework(start: Start) -> None:
    """FastAPI runs functions that are not asynchronous in a pool whose queue all callers share."""
    app = (await start()).app
    left = [dependant for route in app.routes if isinstance(route, APIRoute) for dependant in (route.dependant,)]
    while left:
        dependant = left.pop()
        assert dependant.call is None or inspect.iscoroutinefunction(dependant.call), dependant.call
        left += dependant.dependencies


@dataclass(frozen=True)
class Ran:
    """Work that was submitted."""

    place: str
    caller: str
    has_slot: bool


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Running], list[Ran]]]:
    """Function that begins to record the work of a gateway, and returns the record."""

    def watch(running: Running) -> list[Ran]:
        found = list[Ran]()
        active = running.app.state.gateway.admission._active
        run = Turns.run

        def spied(turns: Turns, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            frame: Any = sys._getframe(1)
            while frame.f_globals["__name__"].endswith(".turns"):
                frame = frame.f_back
            place = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
            found.append(Ran(place, CALLER.get(), active.held_by(CALLER.get()) > 0))
            return run(turns, call, *args, **kwargs)

        monkeypatch.setattr(Turns, "run", spied)
        return found

    return watch


async def ask(running: Running, place: Place, key: int = 0) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEYS[key]}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=PATIENCE_S) as http:
        if place.path == VOICES and place.method == "POST":
            return await http.post(place.path, data=FORM, files={"audio_sample": b"recording"})
        if place.path == VOICES + "/import":
            return await http.post(place.path, files={"file": b"recording"})
        return await http.request(place.method, place.path, json=place.body)


async def begin(start: Start, folder: Path, script: Any = SPOKEN, **limits: int) -> Running:
    profile = READS_LATIN | {"tasks": [*CLONES, HEARS]}
    return await start(script, profile, Limits(drain_s=1, **limits), keys=KEYS, voices=folder, jobs=folder / "jobs")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if place.path])
async def test_work_is_done_for_its_caller_who_has_a_slot(
    start: Start, ran: Callable[[Running], list[Ran]], tmp_path: Path, name: str
) -> None:
    running = await begin(start, tmp_path)
    found = ran(running)
    await ask(running, PLACES[name])
    here = [each for each in found if each.place == name]
    assert here, f"the request does not reach {name}: {[each.place for each in found]}"
    assert all(each.caller for each in here)
    assert all(each.has_slot for each in here) or not PLACES[name].has_slot


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if place.path and place.has_slot])
async def test_work_does_not_begin_before_the_slot_and_not_after_the_caller_has_left(
    start: Start, ran: Callable[[Running], list[Ran]], tmp_path: Path, name: str
) -> None:
    goes_on = asyncio.Event()
    running = await begin(start, tmp_path, [Until(goes_on), *SPOKEN], max_active=1)
    admission = running.app.state.gateway.admission
    other = asyncio.ensure_future(ask(running, Place(SPEAKS, SPEECH), 1))
    await until_async(lambda: admission.num_active)
    found = ran(running)
    waiting = asyncio.ensure_future(ask(running, PLACES[name]))
    await until_async(lambda: admission.num_waiting)
    assert not [each.place for each in found if PLACES[each.place].has_slot]
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await until_async(lambda: not admission.num_waiting)
    found.clear()
    goes_on.set()
    assert (await other).status_code == 200
    assert {each.place for each in found} <= {"stretto_gateway.speech.encoded"}, "of the other caller"


@pytest.mark.slow
async def test_a_text_waits_for_one_slice_of_another_caller(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caller sends many long texts with begun marks; then another one sends a text."""
    turns, order, may_run = Turns(1, "test"), list[str](), threading.Event()
    run = turns.run

    def noted(call: Any, /, *args: Any) -> Any:
        caller = CALLER.get()

        def work() -> Any:
            order.append(caller)
            return call(*args)

        return run(work)

    monkeypatch.setattr(turns, "run", noted)
    monkeypatch.setattr(markup, "READING", turns)
    running = await begin(start, tmp_path)
    held = asyncio.ensure_future(run(may_run.wait, PATIENCE_S))
    hostile = Place(SPEAKS, SPEECH | {"input": "[<a *b " * 1000})
    many = [asyncio.ensure_future(ask(running, hostile)) for _ in range(12)]
    await until_async(lambda: sum(map(len, turns._waiting.values())) == 12)
    honest = asyncio.ensure_future(ask(running, Place(SPEAKS, SPEECH | {"input": LONG}), 1))
    await until_async(lambda: len(turns._waiting) == 2)
    may_run.set()
    assert (await honest).status_code == 200
    assert Keys(KEYS).owners[1] in order[:2]
    for each in (held, *many):
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each
    turns.close()
