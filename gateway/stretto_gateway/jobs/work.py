"""Work on jobs: one section at a time, while nobody else uses the servers."""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import State

from stretto_client.turns import Turns
from stretto_gateway.admission import CALLER, Admission
from stretto_gateway.answers import ApiError
from stretto_gateway.catalogue import speaks
from stretto_gateway.events import closing
from stretto_gateway.fields import Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.jobs.audio import write_book, write_speech
from stretto_gateway.jobs.book import Section
from stretto_gateway.jobs.store import UNFINISHED, Job, JobStore
from stretto_gateway.routes import RouteSettings, RouteState
from stretto_gateway.speech import BATCH_HOLD_S, audio_parts, speech_options
from stretto_gateway.speech_request import SpeechItem

LOG = logging.getLogger("stretto_gateway")
BUSY = (429, 503, 504)  # status of errors after which a section is spoken again
WORK = Turns(2, "jobs")  # one for the file of a long book, which takes minutes


@dataclass(frozen=True)
class JobOptions(RouteSettings):
    """Options of jobs.

    Attributes:
        jobs: Folder of jobs; None to refuse them.
    """

    jobs: Path | None = None


class Jobs(RouteState):
    """Jobs of a gateway. The jobs that have not ended take turns, and each has a section spoken in its turn.

    A section waits until no other request has a slot of any server, or waits for one. If one arrives, the section is
    given up, and spoken again later, which yields the same speech, because all sections have the job's seed.
    """

    def __init__(self, gateway: Gateway):
        folder = gateway.config.of_route(JobOptions).jobs
        self._gateway = gateway
        self._admissions = [server.admission for server in gateway.servers.all]
        self._queue = deque[Job]()
        self._has_jobs = asyncio.Event()
        self._is_quiet = asyncio.Event()
        self._is_stopping = threading.Event()
        self._speaking: asyncio.Task[NDArray[Any]] | None = None
        self._worker: asyncio.Task[None] | None = None
        self.store: JobStore | None = None
        if folder is not None:
            self.store = JobStore(folder, gateway.limits.max_jobs)
            self._queue.extend(self.store.unfinished())
            for admission in self._admissions:
                admission.watch(self._note_others)
            self._note_others()

    async def start(self) -> None:
        """Begin to work on the jobs that have not ended."""
        if self.store is not None:
            self._worker = asyncio.create_task(self._work())

    def begin(self, job: Job) -> None:
        """Queue a new job."""
        self._queue.append(job)
        self._has_jobs.set()

    async def close(self) -> None:
        """Stop; the jobs go on when a gateway with the same folder starts."""
        self._is_stopping.set()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})

    def _note_others(self) -> None:
        if any(admission.num_active or admission.num_waiting for admission in self._admissions):
            self._is_quiet.clear()
            if self._speaking is not None:
                self._speaking.cancel()
        else:
            self._is_quiet.set()

    async def _work(self) -> None:
        while True:
            if not self._queue:
                self._has_jobs.clear()
                await self._has_jobs.wait()
            await self._is_quiet.wait()
            job = self._queue.popleft()
            try:
                if await self._advance(job):
                    self._queue.append(job)
            except FileNotFoundError:  # the job has been deleted
                pass
            except ApiError as error:
                if error.status in BUSY:
                    self._queue.append(job)
                    await asyncio.sleep(error.retry_after_s)
                else:
                    await WORK.run(fail, job, error.message)
            except OSError as error:
                await WORK.run(fail, job, f"the gateway's stored jobs: {error.strerror or error}")
            except Exception as error:
                LOG.error("%s failed", job.id, exc_info=error)
                await WORK.run(fail, job, "internal error")

    async def _advance(self, job: Job) -> bool:
        """Speak the next section of a job, or write its file; return True if the job has not ended."""
        state = await WORK.run(lambda: job.state)
        if state.status not in UNFINISHED:
            return False
        request = await WORK.run(lambda: job.request)
        sections = await WORK.run(lambda: job.sections)
        index = await WORK.run(lambda: job.num_spoken)
        if index == len(sections):
            if await WORK.run(job.change, "finalizing"):
                await WORK.run(finish, job, request, self._gateway.audio_tags, self._is_stopping.is_set)
            return False
        if state.status == "queued" and not await WORK.run(job.change, "in_progress"):
            return False
        if not self._is_quiet.is_set():  # a request has arrived meanwhile
            return True
        self._speaking = asyncio.create_task(self._spoken(job, state.caller, request, sections[index]))
        try:
            await asyncio.wait({self._speaking})
            if not self._speaking.cancelled():
                await WORK.run(write_speech, job, index, self._speaking.result(), request["sample_rate"])
        finally:
            self._speaking.cancel()
            self._speaking = None
        return True

    async def _spoken(self, job: Job, caller: str, request: dict[str, Any], section: Section) -> NDArray[Any]:
        """Return the speech of a section, int16 [n]. The speech counts as use by the caller who has created the job."""
        CALLER.set(caller)
        item = SpeechItem(**request | {"response_format": "pcm", "input": section.text})
        gateway = copy(await self._gateway.for_model(item.model, speaks))
        gateway.admission = Admission(1, 0, lambda _: None)  # sections take no slot from others
        ignored = Ignored(item, is_strict=False)
        asked = State({"owner": job.owner, "keep": lambda num_bytes: None})
        options = await speech_options(gateway, item, asked, ignored)
        options["hold_s"] = max(item.hold_s, BATCH_HOLD_S)
        async with closing(audio_parts(gateway, item, item.input, options, ignored, {})) as parts:
            return np.frombuffer(b"".join([data async for data in parts]), np.int16)


def finish(job: Job, request: Mapping[str, Any], tags: Mapping[str, str], is_stopping: Callable[[], bool]) -> None:
    """Write the finished file of a job and delete the speech of its sections, with the lowest priority.

    Args:
        is_stopping: Function that returns True if the gateway stops. The file is then not written.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    title = {"title": request["title"]} if request.get("title") else {}
    chapters = write_book(
        job,
        request["response_format"],
        request["sample_rate"],
        {**tags, **title},
        lambda: is_stopping() or job.state.status != "finalizing",
    )
    if chapters:
        job.write("chapters.json", chapters)
        job.change("completed")
        job.remove_speech()


def fail(job: Job, message: str) -> None:
    """Store the end of a failed job, unless the job has been deleted."""
    with suppress(FileNotFoundError):
        job.change("failed", message)
