"""Storage for jobs, grouped by owner, so that they continue after a restart.

    FOLDER/OWNER/job_…/request.json     fields of the request, without the text
                       sections.json    the text's sections
                       state.json       status, which changes
                       00000.flac …     speech of the sections so far
                       lock             locked by the gateway that works on the job
                       audio.EXT        the finished file, in place of the sections' speech

Ids are 128 random bits. OWNER is as in `stretto_gateway.voice_store`. Files are written atomically.
"""

import fcntl
import json
import logging
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

from pydantic import TypeAdapter

from stretto_gateway.jobs.book import Section
from stretto_gateway.voice_store import OWNER, keep_names, locked, make_owner_folder, write_whole

LOG = logging.getLogger("stretto_gateway")
ID = re.compile(r"job_[0-9a-f]{32}")
Status = Literal["queued", "in_progress", "finalizing", "completed", "failed", "cancelled"]
UNFINISHED: tuple[Status, ...] = get_args(Status)[:3]


@dataclass(frozen=True, slots=True)
class JobState:
    """State of a job, with all fields of its record.

    Attributes:
        caller: Id of the caller to whose use the speech is counted.
        created_at, ended_at: Unix times in seconds; `ended_at` is 0 until the end.
        response_format: Extension of the finished file.
    """

    caller: str
    created_at: int
    num_sections: int
    response_format: str
    sample_rate: int
    seed: int
    title: str | None = None
    status: Status = "queued"
    ended_at: int = 0
    error: str = ""


class TooManyJobs(Exception):
    """Raised if the owner already has the maximum number of jobs."""


@dataclass(frozen=True, slots=True)
class Job:
    """Folder of a job. Methods block during file access."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def owner(self) -> str:
        return self.folder.parent.name

    @property
    def state(self) -> JobState:
        """The state; raises FileNotFoundError once the job has been deleted, and ValueError if the file is damaged."""
        return STATE.validate_json(self._read("state.json"))

    @property
    def request(self) -> dict[str, Any]:
        """Fields of the request, without the text and the title."""
        fields: dict[str, Any] = json.loads(self._read("request.json"))
        return fields

    @property
    def sections(self) -> list[Section]:
        return SECTIONS.validate_json(self._read("sections.json"))

    @property
    def num_spoken(self) -> int:
        """Number of sections with speech, which are the first ones."""
        return sum(1 for _ in self.folder.glob("*.flac"))

    def speech(self, index: int) -> Path:
        """Return the path of a section's speech."""
        return self.folder / f"{index:05d}.flac"

    def audio(self, extension: str) -> Path:
        """Return the path of the finished file."""
        return self.folder / f"audio.{extension}"

    def change(self, status: Status, error: str = "") -> bool:
        """Store another status, and return True; return False if the job has already ended."""
        ended_at = 0 if status in UNFINISHED else int(time.time())
        with locked(self.folder.parent):  # a cancelled job stays cancelled
            state = self.state
            if state.status in UNFINISHED and state.status != status:
                self.write("state.json", asdict(replace(state, status=status, error=error, ended_at=ended_at)))
        return state.status in UNFINISHED

    def lock(self) -> IO[str] | None:
        """Return a file that locks the job until it is closed; None if another gateway works on the job."""
        file = (self.folder / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def write(self, name: str, record: Any) -> None:
        """Store a JSON file."""
        write_whole(self.folder / name, self.new_file(), json.dumps(record).encode())

    def new_file(self) -> Path:
        """Return a new path for a file that is not yet complete."""
        return self.folder / f"{secrets.token_hex(8)}.unfinished"

    def remove_speech(self) -> None:
        """Delete the speech of the sections, and files that are not complete."""
        for path in [*self.folder.glob("*.flac"), *self.folder.glob("*.unfinished")]:
            path.unlink(missing_ok=True)

    def _read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


STATE = TypeAdapter(JobState)
SECTIONS = TypeAdapter(list[Section])


class JobStore:
    """Jobs in a folder, at most `max_jobs` per owner. Methods block during file access."""

    def __init__(self, folder: Path, max_jobs: int):
        self._folder = folder
        self._max_jobs = max_jobs
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, owner: str, state: JobState, request: dict[str, Any], sections: list[Section]) -> Job:
        """Store a job; raise TooManyJobs if the owner has the maximum number."""
        folder = self._of(owner)
        make_owner_folder(folder)
        with locked(folder):
            if len(self.all(owner)) >= self._max_jobs:
                raise TooManyJobs
            job = Job(folder / f"job_{secrets.token_hex(16)}")
            job.folder.mkdir(mode=0o700)
            job.write("request.json", request)
            job.write("sections.json", [asdict(section) for section in sections])
            job.write("state.json", asdict(state))
            keep_names(folder)
        return job

    def all(self, owner: str) -> list[Job]:
        """Return the owner's jobs, oldest first; damaged ones are logged and skipped."""
        jobs = dict[Job, int]()
        for path in self._of(owner).glob("job_*/state.json"):
            job = Job(path.parent)
            try:
                jobs[job] = job.state.created_at
            except FileNotFoundError:  # deleted a moment ago
                pass
            except ValueError as error:
                LOG.error("%s is not a job: %s", job.id, type(error).__name__)
        return sorted(jobs, key=lambda job: (jobs[job], job.id))

    def find(self, owner: str, job_id: str) -> Job | None:
        """Return a job, or None if the owner has no such job."""
        if ID.fullmatch(job_id) is None:
            return None
        job = Job(self._of(owner) / job_id)
        return job if (job.folder / "state.json").exists() else None

    def unfinished(self) -> list[Job]:
        """Return the jobs of all owners that have not ended, oldest first."""
        owners = [path.name for path in self._folder.iterdir() if OWNER.fullmatch(path.name)]
        jobs = [job for owner in owners for job in self.all(owner)]
        return [job for job in sorted(jobs, key=lambda job: job.state.created_at) if job.state.status in UNFINISHED]

    def remove(self, job: Job) -> None:
        """Delete a job and its files."""
        (job.folder / "state.json").unlink(missing_ok=True)  # first: without it, the folder is not a job
        shutil.rmtree(job.folder, ignore_errors=True)
        keep_names(job.folder.parent)

    def _of(self, owner: str) -> Path:
        if OWNER.fullmatch(owner) is None:
            raise ValueError(f"expected an owner, got {owner!r}")
        return self._folder / owner
