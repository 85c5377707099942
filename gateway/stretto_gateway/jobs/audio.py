"""Files of jobs: speech of sections, and the finished file with its chapters."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from stretto_gateway.encoding import audio_frame
from stretto_gateway.jobs.book import Section
from stretto_gateway.jobs.store import Job

READ_SAMPLES = 1 << 20  # at once
# Container, codec, bits per second and options of each format. FFmpeg writes a WAV file of 4 GiB and more as RF64.
FORMATS: dict[str, tuple[str, str, int | None, dict[str, str]]] = {
    "m4b": ("ipod", "aac", 64_000, {"movflags": "+faststart"}),
    "mp3": ("mp3", "libmp3lame", 64_000, {"id3v2_version": "3"}),
    "wav": ("wav", "pcm_s16le", None, {"rf64": "auto"}),
}
MEDIA_TYPES = {"m4b": "audio/mp4", "mp3": "audio/mpeg", "wav": "audio/wav"}


def write_speech(job: Job, index: int, pcm: NDArray[Any], sample_rate: int) -> None:
    """Store the speech of a section, int16 [n]."""
    unfinished = job.new_file()
    soundfile.write(unfinished, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    unfinished.replace(job.speech(index))


def chapters_of(job: Job, sections: list[Section], sample_rate: int) -> list[dict[str, Any]]:
    """Return the title and the times, in seconds, of each chapter whose speech is complete or has begun."""
    chapters = list[dict[str, Any]]()
    num_samples = 0
    for index, section in enumerate(sections):
        if not job.speech(index).exists():
            break
        num_samples += round(section.pause_s * sample_rate)
        if section.title is not None:
            chapters.append({"title": section.title, "start_s": num_samples / sample_rate})
        num_samples += soundfile.info(job.speech(index)).frames
        chapters[-1]["end_s"] = num_samples / sample_rate
    return chapters


def write_book(
    job: Job, extension: str, sample_rate: int, tags: Mapping[str, str], is_stopped: Callable[[], bool]
) -> list[dict[str, Any]]:
    """Write the finished file of a job, and return its chapters; write no file and return [] if `is_stopped()`."""
    sections = job.sections
    chapters = chapters_of(job, sections, sample_rate)
    container_format, codec, bit_rate, options = FORMATS[extension]
    unfinished = job.new_file()
    with av.open(str(unfinished), "w", format=container_format, options=options) as container:
        container.metadata.update(commented(tags) if extension == "m4b" else tags)
        rate = {} if bit_rate is None else {"b": str(bit_rate)}
        stream: Any = container.add_stream(codec, rate=sample_rate, options=rate, layout="mono")
        if len(chapters) > 1 and extension != "wav":
            container.set_chapters([_chapter(number, chapter) for number, chapter in enumerate(chapters)])
        num_samples = 0
        for index, section in enumerate(sections):
            if is_stopped():
                return []
            with soundfile.SoundFile(job.speech(index)) as speech:
                silence = np.zeros(round(section.pause_s * sample_rate), np.int16)
                for pcm in (silence, *speech.blocks(READ_SAMPLES, dtype="int16")):
                    if len(pcm):
                        container.mux(stream.encode(audio_frame(pcm, sample_rate, num_samples)))
                        num_samples += len(pcm)
        container.mux(stream.encode(None))
    unfinished.replace(job.audio(extension))
    return chapters


def commented(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags for a container that supports only a title and a comment."""
    others = (f"{name}: {value}" for name, value in tags.items() if name != "title")
    title = {"title": tags["title"]} if "title" in tags else {}
    return {"comment": "; ".join(others)} | title


def _chapter(number: int, chapter: Mapping[str, Any]) -> Any:
    """Return a chapter in the format of PyAV, in milliseconds."""
    return {
        "id": number,
        "start": round(1000 * chapter["start_s"]),
        "end": round(1000 * chapter["end_s"]),
        "time_base": Fraction(1, 1000),
        "metadata": {"title": chapter["title"]},
    }
