"""Endpoints of jobs, `/v1/audio/jobs`, whose objects have the form of OpenAI's batches."""

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from stretto_client import RequestRefused
from stretto_gateway.admission import CALLER
from stretto_gateway.answers import FILE, ApiError, described, from_client_error, mismatch, refused
from stretto_gateway.catalogue import speaks
from stretto_gateway.encoding import RATES
from stretto_gateway.events import Streamed
from stretto_gateway.fields import Ignored, Text
from stretto_gateway.gateway import Gateway
from stretto_gateway.jobs.audio import MEDIA_TYPES
from stretto_gateway.jobs.book import Section, sections_of, voice_names
from stretto_gateway.jobs.store import Job, JobState, JobStore, Status, TooManyJobs
from stretto_gateway.jobs.work import WORK, Jobs
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech import FIELDS, speech_options
from stretto_gateway.speech_request import SpeechFields, SpeechItem
from stretto_gateway.turns import FILES

router = APIRouter()
MAX_TITLE_CHARS = 200
MAX_SECTIONS = 10_000  # 2 MB of prose has 3,500
SLICE_SECTIONS = 25  # found in one turn, in 1 to 3 ms
READ_BYTES = 1 << 20  # bytes of a finished file that are read at once
AS_FILE = described("The finished file", *MEDIA_TYPES.values(), schema=FILE)


class JobRequest(SpeechFields):
    """Long text to read aloud, with the options of its speech."""

    input: Text
    title: Annotated[Text, Field(max_length=MAX_TITLE_CHARS)] | None = None
    response_format: Literal["m4b", "mp3", "wav"] = "m4b"  # type: ignore[assignment]


class Chapter(TypedDict):
    """Chapter of a finished file; its times are in seconds."""

    title: str
    start_s: float
    end_s: float


class SectionCounts(TypedDict):
    """Numbers of sections of a job."""

    total: int
    completed: int
    failed: int


class JobError(TypedDict):
    """Error that has ended a job."""

    message: str


class AudioJob(TypedDict):
    """Job that reads a text aloud.

    Attributes:
        ended_at: Unix time in seconds; None until the end.
        chapters: Chapters of the finished file; empty before.
    """

    id: str
    object: Literal["audio.job"]
    status: Status
    title: str | None
    response_format: str
    seed: int
    created_at: int
    ended_at: int | None
    errors: list[JobError]
    request_counts: SectionCounts
    chapters: list[Chapter]


class AudioJobs(TypedDict):
    """Jobs of the caller, oldest first."""

    object: Literal["list"]
    data: list[AudioJob]


class DeletedJob(TypedDict):
    """Deletion of a job."""

    id: str
    object: Literal["audio.job.deleted"]
    deleted: bool


@router.post("/v1/audio/jobs")
async def create_job(body: JobRequest, request: Request, response: Response) -> AudioJob:
    """Create a job that reads a text of up to 2 MB aloud. Its sections are spoken while no other request needs the
    servers.
    """
    gateway: Gateway = request.app.state.gateway
    store = expect_store(gateway)
    num_bytes = len(body.input.encode())
    most = gateway.limits.max_book_bytes
    if num_bytes > most:
        raise mismatch("input", f"at most {most} bytes", f"{num_bytes} bytes")
    if body.input.lstrip().startswith("<speak"):
        raise refused("input", "plain text or Markdown", "SSML")
    ignored = Ignored(body, gateway.strict)
    seed = body.options.get("seed", secrets.randbits(32))
    if type(seed) is not int:
        raise refused("seed", "an integer", seed)
    if body.response_format == "m4b" and body.rate not in RATES["aac"]:
        raise refused("sample_rate", f"one of {', '.join(map(str, RATES['aac']))} for m4b", body.rate)
    sections = list[Section]()
    names = list[str]()
    has_voices = body.markup != "none"
    server = await gateway.for_model(body.model, speaks)
    tags = (await server.catalogue.profile()).tags
    unread = sections_of(body.input, tags, has_voices)
    while len(sections) <= MAX_SECTIONS and (read := await WORK.run(list, islice(unread, SLICE_SECTIONS))):
        sections += [section for section in read if section.text]
        names += await WORK.run(voice_names, read, tags) if has_voices else []
    if not 0 < len(sections) <= MAX_SECTIONS:
        raise mismatch("input", f"1 to {MAX_SECTIONS} sections of text to speak", str(len(sections)))
    fields = body.model_dump(exclude_unset=True, exclude={"input", "title", "response_format"}) | {"seed": seed}
    item = SpeechItem(**fields, input=sections[0].text, response_format="pcm")
    options = await speech_options(server, item, request.state, ignored)
    if item.ref_audio is not None:  # a URL has been fetched, once for all sections
        fields.pop("references", None)
        fields |= {"ref_audio": item.ref_audio, "ref_text": item.ref_text}
    if (voices := options.get("voices")) is not None:
        try:
            await voices.choose_all(names)
        except RequestRefused as refusal:
            raise from_client_error(refusal, FIELDS) from None
    response.headers.update(ignored.headers)
    sizes = len(sections), body.response_format, body.rate
    state = JobState(CALLER.get(), int(time.time()), *sizes, seed, body.title)
    try:
        job = await FILES.run(store.add, request.state.owner, state, fields, sections)
    except TooManyJobs:
        message = f"there are {gateway.limits.max_jobs} jobs of this key, which is the limit; delete one"
        raise ApiError(400, message, code="too_many_jobs") from None
    gateway.of_route(Jobs).begin(job)
    return await FILES.run(record_of, job)


@router.get("/v1/audio/jobs")
async def list_jobs(request: Request) -> AudioJobs:
    """List the caller's jobs, oldest first."""
    store = expect_store(request.app.state.gateway)
    return {"object": "list", "data": await FILES.run(records_of, store, request.state.owner)}


@router.get("/v1/audio/jobs/{job_id}")
async def get_job(job_id: str, request: Request) -> AudioJob:
    """Return the state of a job."""
    return await FILES.run(record_of, await find_job(job_id, request))


@router.get("/v1/audio/jobs/{job_id}/content", response_class=Response, responses=AS_FILE)
async def get_content(job_id: str, request: Request) -> Response:
    """Return the finished file of a job."""
    gateway: Gateway = request.app.state.gateway
    job = await find_job(job_id, request)
    state = await FILES.run(lambda: job.state)
    extension = state.response_format
    if state.status != "completed":
        message = f"job_id: expected a job with status 'completed', got {state.status!r}"
        raise ApiError(409, message, "job_id", "not_completed")
    path = job.audio(extension)
    answer = Streamed(file_parts(path), MEDIA_TYPES[extension], gateway.limits.stall_s)
    answer.headers["content-length"] = str((await FILES.run(path.stat)).st_size)
    answer.headers[ResponseHeader.CONTENT_DISPOSITION] = f'attachment; filename="{job.id}.{extension}"'
    return answer


async def file_parts(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield the content of a file."""
    with await FILES.run(path.open, "rb") as file:
        while data := await FILES.run(file.read, READ_BYTES):
            yield data


@router.post("/v1/audio/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, request: Request) -> AudioJob:
    """End a job. Its speech is deleted with the job."""
    job = await find_job(job_id, request)
    await FILES.run(job.change, "cancelled")
    return await FILES.run(record_of, job)


@router.delete("/v1/audio/jobs/{job_id}")
async def delete_job(job_id: str, request: Request) -> DeletedJob:
    """End a job if it has not ended, and delete its files."""
    job = await find_job(job_id, request)
    await FILES.run(expect_store(request.app.state.gateway).remove, job)
    return {"id": job_id, "object": "audio.job.deleted", "deleted": True}


def expect_store(gateway: Gateway) -> JobStore:
    """Return the store; raise ApiError if the gateway has none."""
    store = gateway.of_route(Jobs).store
    if store is None:
        raise ApiError(400, "this gateway takes no jobs; start it with --jobs FOLDER", code="unsupported")
    return store


async def find_job(job_id: str, request: Request) -> Job:
    """Return a job of the caller; raise ApiError 404 if it is unknown."""
    job = await FILES.run(expect_store(request.app.state.gateway).find, request.state.owner, job_id)
    if job is None:
        raise ApiError(404, f"job_id: expected the id of a job, got {job_id[:60]!r}", "job_id", "not_found")
    return job


def records_of(store: JobStore, owner: str) -> list[AudioJob]:
    """Return the API's objects for all jobs of an owner."""
    records = list[AudioJob]()
    for job in store.all(owner):
        with suppress(FileNotFoundError):  # deleted a moment ago
            records.append(record_of(job))
    return records


def record_of(job: Job) -> AudioJob:
    """Return the API's object for a job."""
    state = job.state
    is_complete = state.status == "completed"
    chapters = json.loads((job.folder / "chapters.json").read_bytes()) if is_complete else []
    return {
        "id": job.id,
        "object": "audio.job",
        "status": state.status,
        "title": state.title,
        "response_format": state.response_format,
        "seed": state.seed,
        "created_at": state.created_at,
        "ended_at": state.ended_at or None,
        "errors": [{"message": state.error}] if state.error else [],
        "request_counts": {
            "total": state.num_sections,
            "completed": state.num_sections if is_complete else job.num_spoken,
            "failed": int(state.status == "failed"),
        },
        "chapters": chapters,
    }
