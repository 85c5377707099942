"""Jobs that read long texts aloud: sections, states, restarts, other requests first, finished files."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import grpc
import numpy as np
import pytest
import soundfile

from stretto_client.tags import VOICE_MARK
from stretto_gateway.jobs import endpoints, work
from stretto_gateway.jobs.book import (
    EMPTY,
    MARK_BEGIN,
    MARK_REST,
    SECTION_CHARS,
    STEP_BLOCKS,
    Section,
    sections_of,
    voice_names,
)
from stretto_gateway.jobs.store import Job, JobState, JobStore
from tests.client.fake_server import Abort, Chunk, ErrorText, Request, Step, Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Running, Start
from tests.gateway.test_audio_hosts import host
from tests.gateway.test_voices import CLONES, RECORDING
from tests.patience import PATIENCE_S, until_async

RATE = 24_000
BOOK = "Chapter 1\n\nA cat sat.\n\nIt slept.\n\nChapter 2\n\nIt woke up."


def text_of(request: Request) -> str:
    text: str = request["text"].decode()
    return text


def spoken(request: Request) -> list[Step]:
    """Return speech whose level is that of the text's length, and which ends softly."""
    level = 100 * len(text_of(request)) + np.zeros(NUM_SAMPLES, np.int16)
    level[-2000:] = 0
    return [Chunk(0, NUM_SAMPLES, pcm=level.astype(np.int16), is_16_bit=True, is_final=True, is_last=True)]


def seeds_of(running: Running) -> list[int]:
    return [json.loads(request["options"])["seed"] for request in running.behind.requests]


async def ended(running: Running, job_id: str) -> dict[str, Any]:
    """Return a job's record once the job has ended."""
    async with running.http() as http, asyncio.timeout(PATIENCE_S):
        while True:
            record: dict[str, Any] = (await http.get(f"/v1/audio/jobs/{job_id}")).json()
            if record["ended_at"]:
                return record
            await asyncio.sleep(0.01)


async def begun(running: Running, **fields: Any) -> dict[str, Any]:
    async with running.http() as http:
        answer = await http.post("/v1/audio/jobs", json={"input": BOOK, "check": "off", **fields})
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


async def content(running: Running, job_id: str, folder: Path) -> Path:
    """Download the file of a job."""
    async with running.http() as http:
        answer = await http.get(f"/v1/audio/jobs/{job_id}/content")
    assert answer.status_code == 200
    path = folder / "downloaded"
    path.write_bytes(answer.content)
    return path


def test_sections_are_headings_and_pieces_of_paragraphs() -> None:
    assert [*sections_of(BOOK)] == [
        Section("Chapter 1", 0.0, "Chapter 1"),
        Section("A cat sat.\n\nIt slept.", 1.0),
        Section("Chapter 2", 2.0, "Chapter 2"),
        Section("It woke up.", 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("It rained.", [""]),
        ("It rained.\n\n# The sea #\n\nIt rained.", ["", "The sea"]),
        ("Prologue\n\nIt rained.\fPART TWO\n\nIt rained.", ["Prologue", "PART TWO"]),
        ("Part of it, he said, was true.\n\nBook the room now, please.", [""]),
        ("Chapter one\nwas a line of a poem.", [""]),
        ("Chapter 7", ["Chapter 7"]),
        (" \n\n \f ", []),
    ],
)
def test_chapters_begin_with_headings(text: str, titles: list[str]) -> None:
    assert [section.title for section in sections_of(text) if section.title is not None] == titles


def test_all_of_a_long_text_is_in_short_sections() -> None:
    text = "\n\n".join(" ".join(f"Sentence {number} of {length}." for number in range(length)) for length in range(60))
    sections = [*sections_of(text)]
    assert " ".join(section.text for section in sections).split() == text.split()
    assert max(len(section.text) for section in sections) <= SECTION_CHARS
    assert {section.pause_s for section in sections} == {0.0, 0.75}


@pytest.mark.parametrize(("name", "codec"), [("m4b", "aac"), ("mp3", "mp3"), ("wav", "pcm_s16le")])
async def test_job_yields_a_file_with_chapters(start: Start, tmp_path: Path, name: str, codec: str) -> None:
    running = await start(spoken, jobs=tmp_path / "jobs")
    job = await begun(running, response_format=name, title="Cats", seed=7)
    assert (job["object"], job["seed"], job["title"]) == ("audio.job", 7, "Cats")
    job = await ended(running, job["id"])
    assert job["status"] == "completed", job
    assert job["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
    assert [chapter["title"] for chapter in job["chapters"]] == ["Chapter 1", "Chapter 2"]
    assert seeds_of(running) == [7] * 4
    second_s = NUM_SAMPLES / RATE
    assert job["chapters"][1]["start_s"] == pytest.approx(2 * second_s + 1.0 + 2.0)
    with av.open(str(await content(running, job["id"], tmp_path))) as file:
        assert file.streams.audio[0].codec_context.name.startswith(codec)
        assert file.duration / 1e6 == pytest.approx(4 * second_s + 4.0, abs=0.15)
        if name != "wav":
            assert file.metadata["title"] == "Cats"
            assert any("trainedAlgorithmicMedia" in tag for tag in file.metadata.values())
            times = [chapter["start"] * float(chapter["time_base"]) for chapter in file.chapters()]
            assert times == pytest.approx([chapter["start_s"] for chapter in job["chapters"]], abs=0.002)


def test_a_voice_goes_on_in_later_sections_up_to_the_next_heading() -> None:
    long = ", ".join(["It rained"] * (SECTION_CHARS // 11))
    text = f"[voice:slt]\n\n{long}.\n\nIt went on. [/voice]\n\n{long}.\n\nChapter 2\n\nIt woke."
    sections = [(section.text[:14], section.pause_s, section.title) for section in sections_of(text) if section.text]
    assert sections == [
        ("[voice:slt]It ", 0.0, ""),
        ("[voice:slt]It ", 0.75, None),
        ("It rained, It ", 0.75, None),
        ("Chapter 2", 2.0, "Chapter 2"),
        ("It woke.", 1.0, None),
    ]
    assert not any("[voice:slt]It" in section.text for section in sections_of(text, has_voices=False))


def test_text_without_speech_is_divided_into_steps() -> None:
    """Each step is an empty section, so that one text of marks or of many paragraphs does not occupy a thread."""
    marks = "[voice:rms]" * 500
    assert [*sections_of(marks)] == [EMPTY] * 10
    assert [*sections_of(f"{marks}It rained.")][-1].title == ""
    short = "It rained.\f" * 3 * STEP_BLOCKS
    assert [*sections_of(short)][:3] == [EMPTY] * 3


@pytest.mark.parametrize("text", ["[voice:Dr. Who! Yes. No]It rained. ", "[voice:a b]x", "雨。[voice:{}. A]"])
def test_marks_are_not_cut(text: str) -> None:
    book = "".join(text.replace("{}", str(number)) for number in range(300))
    sections = [section.text for section in sections_of(book) if section.text]
    assert len(sections) > 2
    spoken = "".join(VOICE_MARK.sub("", section) for section in sections)
    assert "".join(spoken.split()) == "".join(VOICE_MARK.sub("", book).split())
    assert not any(letter in spoken for letter in (MARK_BEGIN, MARK_REST))


def test_tags_of_the_model_are_no_reasoning_with_marks() -> None:
    text = "<thinking>[voice:rms]It rained.</thinking>\f" + "It rained. " * 100
    for tags, mark in ((["<thinking>"], "[voice:rms]"), ([], "")):
        sections = [*sections_of(text, tags)]
        assert voice_names(sections, tags) == (["rms"] if mark else [])
        assert sections[-1].text.startswith(f"{mark}It")


async def test_voices_in_a_book_are_refused_when_it_is_sent_and_kept_in_its_sections(
    start: Start, tmp_path: Path
) -> None:
    running = await start(spoken, jobs=tmp_path / "jobs")
    body = {"model": "tts-1", "response_format": "wav", "check": "off"}
    async with running.http() as http:
        answer = await http.post("/v1/audio/jobs", json=body | {"input": f"{BOOK}\n\n[voice:nobody]It ended."})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input.voice")
    job = await begun(running, input="One. [voice:rms]Two.", **body)
    assert (await ended(running, job["id"]))["status"] == "completed"
    voices = [json.loads(request["options"]).get("voice") for request in running.behind.requests]
    assert voices == [None, "rms"]


async def test_samples_are_those_of_the_sections_with_pauses(start: Start, tmp_path: Path) -> None:
    running = await start(spoken, jobs=tmp_path / "jobs")
    job = await ended(running, (await begun(running, response_format="wav"))["id"])
    samples, rate = soundfile.read(await content(running, job["id"], tmp_path), dtype="int16")
    assert rate == RATE
    expected = []
    for section in sections_of(BOOK):
        expected += [np.zeros(round(section.pause_s * RATE), np.int16), spoken({"text": section.text.encode()})[0].pcm]
    assert np.array_equal(samples, np.concatenate(expected))
    assert not list(tmp_path.glob("jobs/*/*/*.flac")), "the speech of the sections is deleted"


async def test_voice_at_a_url_is_fetched_once_for_all_sections(start: Start, tmp_path: Path) -> None:
    async with host() as address:
        running = await start(SPOKEN, CLONES, jobs=tmp_path / "jobs", audio_hosts=(address,))
        job = await begun(running, ref_audio=f"http://{address}/once?signed=%27%2B%2f%21")
        record = await ended(running, job["id"])
    assert record["status"] == "completed", record
    audios = [request["audio"] for request in running.behind.requests]
    assert audios == len(audios) * [RECORDING]
    assert len(audios) > 1


async def test_job_goes_on_after_a_restart(start: Start, tmp_path: Path) -> None:
    never = asyncio.Event()
    first = await start(
        lambda request: [Until(never)] if text_of(request) == "Chapter 2" else spoken(request), jobs=tmp_path
    )
    job = await begun(first, response_format="wav", seed=7)
    await until_async(lambda: len(first.behind.requests) == 3)
    first.server.should_exit = True
    await until_async(lambda: first.behind.num_cancelled == 1)
    second = await start(spoken, jobs=tmp_path)
    assert (await ended(second, job["id"]))["status"] == "completed"
    assert [text_of(request) for request in second.behind.requests] == ["Chapter 2", "It woke up."]
    assert seeds_of(second) == [7, 7]


async def test_gateways_with_the_same_folder_share_the_work(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "OTHERS_S", 0.01)
    may_go_on = asyncio.Event()

    def script(request: Request) -> list[Step]:
        return [Until(may_go_on), *spoken(request)]

    first = await start(script, jobs=tmp_path)
    job = await begun(first, response_format="wav")
    await until_async(lambda: len(first.behind.requests) == 1)
    second = await start(script, jobs=tmp_path)
    other = await begun(second, input="Cats.", response_format="wav")
    await until_async(lambda: len(second.behind.requests) == 1)
    assert [text_of(request) for request in second.behind.requests] == ["Cats."]
    may_go_on.set()
    for name in (job["id"], other["id"]):
        assert (await ended(second, name))["status"] == "completed"
    texts = [text_of(request) for running in (first, second) for request in running.behind.requests]
    assert sorted(texts) == sorted([*(section.text for section in sections_of(BOOK)), "Cats."])


async def test_long_text_is_split_in_turns(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other callers wait for a slice of the work, and no work is done on a text with too many sections."""
    monkeypatch.setattr(endpoints, "MAX_SECTIONS", 100)
    sizes = list[int]()

    def counted(text: str, tags: list[str], has_voices: bool) -> Iterator[Section]:
        sizes.append(0)
        for section in sections_of(text, tags, has_voices):
            sizes[0] += bool(section.text)
            yield section

    monkeypatch.setattr(endpoints, "sections_of", counted)
    running = await start(spoken, jobs=tmp_path)
    async with running.http() as http:
        answer = await http.post("/v1/audio/jobs", json={"input": "It rained.\f" * 50_000})
    assert "expected 1 to 100 sections" in answer.json()["error"]["message"]
    assert sizes[0] <= 100 + endpoints.SLICE_SECTIONS


async def test_other_requests_come_first(start: Start, tmp_path: Path) -> None:
    """A request gives up the section that is spoken, which is spoken again once the request has ended."""
    job_may_end = asyncio.Event()
    other_may_end = asyncio.Event()

    def script(request: Request) -> list[Step]:
        waits_for = other_may_end if text_of(request) == "Hello." else job_may_end
        return [Until(waits_for), *spoken(request)]

    running = await start(script, jobs=tmp_path)
    job = await begun(running)
    await until_async(lambda: len(running.behind.requests) == 1)
    async with running.http() as http:
        other = asyncio.create_task(http.post("/v1/audio/speech", json={"input": "Hello.", "check": "off"}))
        await until_async(lambda: running.behind.num_cancelled == 1 and len(running.behind.requests) == 2)
        job_may_end.set()
        assert [text_of(request) for request in running.behind.requests] == ["Chapter 1", "Hello."]
        assert not other.done()
        other_may_end.set()
        assert (await other).status_code == 200
    assert (await ended(running, job["id"]))["status"] == "completed"
    texts = [text_of(request) for request in running.behind.requests]
    assert texts[:3] == ["Chapter 1", "Hello.", "Chapter 1"]


def test_job_that_is_deleted_while_jobs_are_listed_is_left_out(tmp_path: Path) -> None:
    store: Any = SimpleNamespace(all=lambda _: [Job(tmp_path / "job_0")])
    assert endpoints.records_of(store, "everybody") == []


async def test_jobs_take_turns(start: Start, tmp_path: Path) -> None:
    both = asyncio.Event()
    running = await start(lambda request: [Until(both), *spoken(request)], jobs=tmp_path)
    jobs = [await begun(running, input=f"{name} one.\f{name} two.") for name in ("A", "B")]
    both.set()
    for job in jobs:
        assert (await ended(running, job["id"]))["status"] == "completed"


async def test_error_of_a_section_ends_the_job(start: Start, tmp_path: Path) -> None:
    def script(request: Request) -> list[Step]:
        refusal = ErrorText("invalid request: text: expected letters, got none")
        return [refusal] if text_of(request) == "Chapter 2" else spoken(request)

    running = await start(script, jobs=tmp_path)
    job = await ended(running, (await begun(running))["id"])
    assert (job["status"], job["errors"]) == ("failed", [{"message": "input: expected letters, got none"}])
    assert job["request_counts"] == {"total": 4, "completed": 2, "failed": 1}


async def test_unavailable_server_is_asked_again(start: Start, tmp_path: Path) -> None:
    answers = iter([[Abort(grpc.StatusCode.UNAVAILABLE, "not yet")]])
    running = await start(lambda request: next(answers, None) or spoken(request), jobs=tmp_path)
    job = await ended(running, (await begun(running))["id"])
    assert job["status"] == "completed", job
    assert [text_of(request) for request in running.behind.requests][:2] == ["Chapter 1", "Chapter 1"]


async def test_cancelled_and_deleted_jobs_end(start: Start, tmp_path: Path) -> None:
    never = asyncio.Event()
    running = await start([Until(never)], jobs=tmp_path)
    job = await begun(running)
    async with running.http() as http:
        cancelled = await http.post(f"/v1/audio/jobs/{job['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        early = await http.get(f"/v1/audio/jobs/{job['id']}/content")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "not_completed")
        assert (await http.delete(f"/v1/audio/jobs/{job['id']}")).json()["deleted"]
        assert (await http.get(f"/v1/audio/jobs/{job['id']}")).status_code == 404
        assert (await http.get("/v1/audio/jobs")).json() == {"object": "list", "data": []}
    assert not list(tmp_path.glob("*/job_*"))


async def test_jobs_belong_to_the_key(start: Start, tmp_path: Path) -> None:
    keys = ("a" * 32, "b" * 32)
    running = await start(spoken, jobs=tmp_path, keys=keys)
    async with running.http() as http:
        own, other = ({"authorization": f"Bearer {key}"} for key in keys)
        job = (await http.post("/v1/audio/jobs", json={"input": BOOK}, headers=own)).json()
        path = f"/v1/audio/jobs/{job['id']}"
        for method, of_job in (("GET", path), ("GET", f"{path}/content"), ("POST", f"{path}/cancel"), ("DELETE", path)):
            assert (await http.request(method, of_job, headers=other)).status_code == 404
        assert (await http.get("/v1/audio/jobs", headers=other)).json()["data"] == []
        assert [record["id"] for record in (await http.get("/v1/audio/jobs", headers=own)).json()["data"]] == [
            job["id"]
        ]


async def test_title_is_a_field_of_a_strict_gateway_and_others_are_not(start: Start, tmp_path: Path) -> None:
    running = await start(spoken, jobs=tmp_path, strict=True)
    assert (await begun(running, title="Cats"))["title"] == "Cats"
    async with running.http() as http:
        answer = await http.post("/v1/audio/jobs", json={"input": BOOK, "volume": 3})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "volume")


async def test_job_of_a_key_at_its_ceiling_holds_up_no_other(start: Start, tmp_path: Path) -> None:
    keys = ("a" * 32, "b" * 32)
    running = await start(spoken, jobs=tmp_path, keys=keys, ceilings=("characters=5/day",))
    full, other = ({"authorization": f"Bearer {key}"} for key in keys)
    async with running.http() as http:
        waiting = (await http.post("/v1/audio/jobs", json={"input": BOOK, "check": "off"}, headers=full)).json()
        await until_async(lambda: len(running.behind.requests) == 1)
        job = (await http.post("/v1/audio/jobs", json={"input": "Hi.", "check": "off"}, headers=other)).json()
        async with asyncio.timeout(PATIENCE_S):
            while not (await http.get(f"/v1/audio/jobs/{job['id']}", headers=other)).json()["ended_at"]:
                await asyncio.sleep(0.01)
        record = (await http.get(f"/v1/audio/jobs/{waiting['id']}", headers=full)).json()
    assert (record["status"], record["request_counts"]["completed"]) == ("in_progress", 1)


async def test_job_fails_if_the_disk_is_almost_full(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MIN_FREE_BYTES", 1 << 60)
    running = await start(spoken, jobs=tmp_path)
    job = await ended(running, (await begun(running))["id"])
    assert job["status"] == "failed"
    assert "free bytes on the disk" in job["errors"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "é" * 1_000_001}, "input: expected at most 2000000 bytes, got 2000002 bytes"),
        ({"input": " \n\n "}, "input: expected 1 to 10000 sections of text to speak, got 0"),
        ({"input": "# A\n\n" * 10_001}, "input: expected 1 to 10000 sections of text to speak, got 10001"),
        ({"seed": "x"}, "seed: expected an integer, got 'x'"),
        ({"input": "<speak>Hello</speak>"}, "input: expected plain text or Markdown, got 'SSML'"),
        ({"response_format": "opus"}, "response_format: "),
        ({"voice": "nobody"}, "voice: "),
        ({"sample_rate": 10_000}, "sample_rate: expected one of 8000, "),
    ],
)
async def test_bad_requests_are_refused(start: Start, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    running = await start(spoken, jobs=tmp_path)
    async with running.http() as http:
        answer = await http.post("/v1/audio/jobs", json={"input": BOOK, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


async def test_gateway_without_a_folder_takes_no_jobs(start: Start) -> None:
    running = await start(spoken)
    async with running.http() as http:
        answer = await http.post("/v1/audio/jobs", json={"input": BOOK})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")


def test_job_that_has_ended_does_not_change(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    job = store.add("everybody", JobState("", 0, 1, "wav", RATE, 7), {}, [Section("A.", 0.0, "")])
    assert job.change("cancelled")
    assert not job.change("in_progress")
    assert job.state.status == "cancelled"


def test_damaged_folders_are_no_jobs(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    for number, state in enumerate(("", "[]", '{"caller": 1}', "{", '{"created_at": "x"}')):
        folder = tmp_path / "everybody" / f"job_{number:032d}"
        folder.mkdir(parents=True)
        if state:
            (folder / "state.json").write_text(state)
    assert store.all("everybody") == []
    assert store.unfinished() == []
