"""Work on jobs: one section at a time, while no other request uses the servers."""

import asyncio
import errno
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import State

from stretto_client.fair_threads import Turns
from stretto_gateway.admission import CALLER, Admission
from stretto_gateway.answers import ApiError
from stretto_gateway.catalogue import speaks
from stretto_gateway.events import closing
from stretto_gateway.fields import Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.jobs.audio import write_book, write_speech
from stretto_gateway.jobs.book import Section
from stretto_gateway.jobs.store import Job, JobState, JobStore
from stretto_gateway.routes import RouteSettings, RouteState
from stretto_gateway.speech import audio_parts, speech_options
from stretto_gateway.speech_request import SpeechItem
from stretto_gateway.whole_file import WHOLE_HOLD_S

LOG = logging.getLogger("stretto_gateway")
MIN_FREE_BYTES = 1 << 30  # free space on the disk of the jobs; with less, a job fails
OTHERS_S = 1.0  # time after which a job is checked again that another gateway works on
BUSY = (429, 503, 504)  # status of errors after which a section is spoken again
WORK = Turns(2, "jobs")  # one for the file of a long book, which takes minutes


@dataclass(frozen=True)
class JobOptions(RouteSettings):
    """Options of jobs: their folder, or None to refuse them."""

    jobs: Path | None = None


class Jobs(RouteState):
    """Jobs of a gateway. Unfinished jobs take turns; in each turn, one section of a job is spoken.

    A section waits until no other request has a slot of any server, or waits for one. If one arrives, the section is
    abandoned, and spoken again later. Its speech is the same then, because all sections have the job's seed. Gateways
    with the same folder share the jobs that they found at their start; each section is spoken by one of them.
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
                if error.status in BUSY:  # up to a day, for a key that has reached its ceiling
                    asyncio.get_running_loop().call_later(error.retry_after_s, self.begin, job)
                else:
                    await WORK.run(fail, job, error.message)
            except OSError as error:
                await WORK.run(fail, job, f"the gateway's stored jobs: {error.strerror or error}")
            except Exception as error:
                LOG.error("%s failed", job.id, exc_info=error)
                await WORK.run(fail, job, "internal error")

    async def _advance(self, job: Job) -> bool:
        """Speak the next section of a job, or write its file; return True if it is to be queued again."""
        lock = await WORK.run(job.lock)
        if lock is None:
            asyncio.get_running_loop().call_later(OTHERS_S, self.begin, job)
            return False
        with lock:
            return await self._advance_locked(job)

    async def _advance_locked(self, job: Job) -> bool:
        step = await WORK.run(next_step, job)
        if step is None:
            return False
        if step.section is None:
            await WORK.run(finish, job, step.state, self._gateway.audio_tags, self._is_stopping.is_set)
            return False
        if not self._is_quiet.is_set():  # another request has arrived in the meantime
            return True
        self._speaking = asyncio.create_task(self._spoken(job, step.state.caller, step.request, step.section))
        try:
            await asyncio.wait({self._speaking})
            if not self._speaking.cancelled():
                await WORK.run(write_speech, job, step.index, self._speaking.result(), step.state.sample_rate)
        finally:
            self._speaking.cancel()
            self._speaking = None
        return True

    async def _spoken(self, job: Job, caller: str, request: dict[str, Any], section: Section) -> NDArray[Any]:
        """Return the speech of a section, int16 [n], which counts as use by the caller that created the job."""
        CALLER.set(caller)
        item = SpeechItem(**request, input=section.text, response_format="pcm")
        gateway = copy(await self._gateway.for_model(item.model, speaks))
        gateway.admission = Admission(1, 0, lambda _: None)  # of its own: sections take no slot from requests
        ignored = Ignored(item, is_strict=False)
        asked = State({"owner": job.owner, "keep": lambda num_bytes: None})
        options = await speech_options(gateway, item, asked, ignored)
        options["hold_s"] = max(item.hold_s, WHOLE_HOLD_S)
        async with closing(audio_parts(gateway, item, item.input, options, ignored, {})) as parts:
            return np.frombuffer(b"".join([data async for data in parts]), np.int16)


@dataclass(frozen=True)
class Step:
    """Next step of a job: a section to speak or, if there is none, the file to write."""

    state: JobState
    index: int
    request: dict[str, Any]
    section: Section | None


def next_step(job: Job) -> Step | None:
    """Return the next work on a job, and store that it has begun; None if the job has ended.

    OSError is raised if the disk has too little space.
    """
    state = job.state
    index = job.num_spoken
    is_spoken = index == state.num_sections
    if not job.change("finalizing" if is_spoken else "in_progress"):
        return None
    if shutil.disk_usage(job.folder).free < MIN_FREE_BYTES:
        raise OSError(errno.ENOSPC, f"expected {MIN_FREE_BYTES} free bytes on the disk, got fewer")
    return Step(state, index, {}, None) if is_spoken else Step(state, index, job.request, job.sections[index])


def finish(job: Job, state: JobState, tags: Mapping[str, str], is_stopping: Callable[[], bool]) -> None:
    """Write the finished file of a job, unless stopped, and delete its sections' speech, with the lowest priority."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    title = {"title": state.title} if state.title else {}
    chapters = write_book(
        job,
        state.response_format,
        state.sample_rate,
        {**tags, **title},
        lambda: is_stopping() or job.state.status != "finalizing",
    )
    if chapters:
        job.write("chapters.json", chapters)
        job.change("completed")
        job.remove_speech()


def fail(job: Job, message: str) -> None:
    """Record that a job has failed, unless it was deleted. If that fails, a restart tries the job again."""
    try:
        job.change("failed", message)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a full disk, or a damaged file; other jobs go on
        LOG.error("%s: its failure could not be stored", job.id, exc_info=error)
