"""Shards of training speech that the teacher synthesises: python -m training.tiny.synthesise --scripts DIR --out DIR

A shard has the vectors and the pitch of several utterances in a row, and the sequences of these utterances, to be
generated and to be transcribed. Further files have sequences without audio.
"""

import argparse
import os
import random
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from stretto.codecs.tiny.codec import HOPS
from training.tiny import builders
from training.tiny.corpus import WordStrings, load_packed, pack, reading, save_packed
from training.tiny.encoded import Spoken, Transcript, frame_starts, phoneme_of_frames
from training.tiny.script_files import MAX_PHONEMES, PRONUNCIATIONS, READING, SCRIPTS, read_pronunciations, read_scripts
from training.tiny.teacher import Script, Teacher

SHARD_SIZE = 125
TAIL_HOPS = 16  # maximum number of hops of the last silence
MAX_HEARD_FRAMES = 480
# silence that is added to a recording
BEFORE_HOPS = (-3, 28)
AFTER_HOPS = (0, 28)
SPEEDS = (0.85, 1.2)
HEARD_SHARE = 0.7  # of the utterances
READ_SIZE = 6_000  # sequences per file without audio
VOICE = "heart"


@dataclass(frozen=True)
class Shard:
    """Utterances in a row.

    Attributes:
        hidden: Vectors, float16 [T, 256].
        pitch_hz: float16 [T].
        first: First hop of each utterance, and the end of the last one, int64 [N + 1].
        listened: Index of the utterance of each sequence to be transcribed, int64 [M].
        before: Hops of silence that begin each recording; negative to cut it, int64 [M].
        speed: Speed of each recording relative to the utterance, float64 [M].
        speak: Sequences to be generated, as `corpus.pack` returns them.
        listen: Sequences to be transcribed.
    """

    hidden: np.ndarray
    pitch_hz: np.ndarray
    first: np.ndarray
    listened: np.ndarray
    before: np.ndarray
    speed: np.ndarray
    speak: dict[str, np.ndarray]
    listen: dict[str, np.ndarray]


def spoken(script: Script, ends: np.ndarray, frames: int) -> Spoken | None:
    """Return the utterance with each frame's phoneme, given `ends` in frames; None for too many phonemes."""
    if len(ends) > frames or len(ends) > MAX_PHONEMES:
        return None
    found = phoneme_of_frames(frame_starts(list(ends), frames), frames)
    return Spoken(Transcript(script.text, script.phonemes, script.words), VOICE, found)


def make_shard(teacher: Teacher, scripts: list[Script], rng: random.Random) -> Shard:
    """Return the shard of synthesised scripts."""
    hidden = []
    pitch = []
    speak = []
    listen = []
    heard = []
    for script in scripts:
        speech = teacher.speak(script)
        hops = min(len(speech.hidden), int(speech.ends[-2]) + TAIL_HOPS)
        utterance = spoken(script, speech.ends / HOPS, -(-hops // HOPS))
        if utterance is None:
            continue
        speak.append(builders.tts(utterance))
        hidden.append(speech.hidden[:hops])
        pitch.append(speech.pitch_hz[:hops])
        if rng.random() > HEARD_SHARE:
            continue
        speed = rng.uniform(*SPEEDS) if rng.random() < 0.5 else 1.0
        before = rng.randint(*BEFORE_HOPS)
        after = rng.randint(*AFTER_HOPS)
        frames = -(-int(before + hops / speed + after) // HOPS)
        ends = np.maximum(before + np.minimum(speech.ends, hops) / speed, 0) / HOPS
        recording = spoken(script, ends, frames) if frames <= MAX_HEARD_FRAMES else None
        if recording is not None:
            listen.append(builders.asr(recording))
            heard.append((len(speak) - 1, before, speed))
    first = np.cumsum([0, *map(len, hidden)])
    listened, befores, speeds = (np.asarray(column) for column in zip(*heard, strict=True))
    return Shard(
        np.concatenate(hidden), np.concatenate(pitch), first, listened, befores, speeds, pack(speak), pack(listen)
    )


def write_shard(path: Path, shard: Shard) -> None:
    """Save a shard atomically."""
    arrays = {name: value for name, value in vars(shard).items() if not isinstance(value, dict)}
    for task in ("speak", "listen"):
        arrays |= {f"{task}.{name}": value for name, value in getattr(shard, task).items()}
    save_packed(path, arrays)


def read_shard(path: Path) -> Shard:
    arrays = load_packed(path)
    packed = {
        task: {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{task}.")}
        for task in ("speak", "listen")
    }
    fields: dict[str, Any] = {name: value for name, value in arrays.items() if "." not in name}
    return Shard(**fields | packed)


def read_sequences(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return only the sequences in a shard's file, by task."""
    found: dict[str, dict[str, np.ndarray]] = {"speak": {}, "listen": {}}
    with np.load(path) as arrays:
        for name in arrays.files:
            task, point, kind = name.partition(".")
            if point:
                found[task][kind] = arrays[name]
    return found


def work(
    worker: int, workers: int, scripts_folder: Path, teacher: Path, out: Path, limit: int, string_files: int
) -> None:
    """Write this worker's share of the missing files, the first shards first, because the codec needs them."""
    rng = random.Random(worker)
    scripts = read_scripts(scripts_folder / SCRIPTS)[:limit]
    network = Teacher(teacher)
    strings = WordStrings(read_pronunciations(scripts_folder / PRONUNCIATIONS), rng)

    def shard(number: int) -> None:
        path = out / f"shard_{number:04d}.npz"
        if not path.exists():
            part = scripts[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
            write_shard(path, make_shard(network, part, random.Random(number)))

    def read(number: int) -> None:
        path = out / f"read_{number:04d}.npz"
        if not path.exists():
            part = unspoken[(number - string_files) * READ_SIZE :][:READ_SIZE] if number >= string_files else []
            texts = [Transcript(each.text, each.phonemes, each.words) for each in part]
            rows = [builders.g2p(text, VOICE) for text in texts] or reading(strings, READ_SIZE, rng)
            save_packed(path, pack(rows))

    shards = range(worker, -(-len(scripts) // SHARD_SIZE), workers)
    for number in shards[:1]:
        shard(number)
    unspoken = read_scripts(scripts_folder / READING)[:limit]
    for number in range(worker, string_files + -(-len(unspoken) // READ_SIZE), workers):
        read(number)
    for number in shards[1:]:
        shard(number)


def start(
    workers: int, scripts: Path, teacher: Path, out: Path, limit: int = 1 << 30, string_files: int = 50
) -> list[Any]:
    """Start the workers and return their processes."""
    out.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    arguments = [(worker, workers, scripts, teacher, out, limit, string_files) for worker in range(workers)]
    processes = [context.Process(target=work, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    return processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripts", type=Path, required=True, help="folder that `scripts` wrote")
    parser.add_argument("--teacher", type=Path, required=True, help="folder that `cut_teacher` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=int, default=1 << 30, help="number of scripts")
    arguments = parser.parse_args()
    for process in start(arguments.workers, arguments.scripts, arguments.teacher, arguments.out, arguments.limit):
        process.join()


if __name__ == "__main__":
    main()
