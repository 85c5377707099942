"""Evaluate an exported checkpoint on the test sets: python -m training.tiny.evaluate --folder DIR --checkpoint DIR

The folder has what `training.tiny.scripts` and `teacher.cut_teacher` wrote. The command appends one JSON line per
result to `wer.jsonl` in the folder. Existing results are not measured again.
"""

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from stretto.codecs.base import Codec, Window
from stretto.codecs.tiny.codec import load as load_tiny
from training.tiny.encoded import Transcript
from training.tiny.export import load_exported
from training.tiny.generate import Speaking, phonemise, speak, text_prompt, transcribe, written
from training.tiny.judge import Judge, word_errors
from training.tiny.render import speech
from training.tiny.script_files import PROSE
from training.tiny.scripts import cased
from training.tiny.sequences import phoneme_text
from training.tiny.teacher import Head, Reader, Script, Teacher
from training.tiny.test_sets import domain_sentences, open_sentences
from training.tiny.words import spelled_words

BATCH = 30
VOICE = "heart"
SETS = ("domain", "open", "everyday")


def test_texts(folder: Path) -> dict[str, list[str]]:
    """Return the texts of each set, written as in print."""
    with gzip.open(folder / PROSE, "rt") as file:
        prose: list[str] = json.load(file)
    return {
        "domain": [cased(text) for text in domain_sentences()],
        "open": [cased(text) for text in open_sentences()],
        "everyday": prose,
    }


def resynthesise(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Decode codes [T, K] in a single window and return the samples [n]."""
    whole = torch.from_numpy(codes.T.astype(np.int64))[None]
    pcm, _ = codec.decode(Window(whole, 0, 0, torch.zeros(1, dtype=torch.int64), codec.initial_state(1)))
    return pcm[0].numpy()


def error_rate(references: list[list], found: list[list]) -> float:
    """Return the number of edit errors in percent of the references' total length."""
    errors = sum(word_errors(reference, other) for reference, other in zip(references, found, strict=True))
    return 100 * errors / sum(map(len, references))


@dataclass(frozen=True)
class Figure:
    """Quantity, test set and settings of a measurement."""

    what: str
    test_set: str
    guidance_scale: float | None = None
    seed: int | None = None

    def record(self, value: float, ended: int | None = None) -> str:
        return json.dumps({**vars(self), "value": round(value, 2), "ended": ended})


class Evaluation:
    """Evaluation on a test set. Each method measures one quantity."""

    def __init__(self, folder: Path, checkpoint: Path, test_set: str):
        reader = Reader()
        self.test_set = test_set
        self.scripts: list[Script] = [reader.script([text]) for text in test_texts(folder)[test_set]]
        self.texts = [script.text for script in self.scripts]
        self._folder = folder
        self._network = load_exported(checkpoint)
        self._codec = load_tiny(checkpoint)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.test_set, self._folder / "judge")

    @cached_property
    def recordings(self) -> list[np.ndarray]:
        teacher = Teacher(self._folder)
        head = Head(self._folder, "cpu")
        found = []
        for script in self.scripts:
            spoken = teacher.speak(script)
            hidden = torch.from_numpy(spoken.hidden)[None]
            pitch_hz = torch.from_numpy(spoken.pitch_hz)[None]
            found.append(speech(head, self._codec.decoder, hidden, pitch_hz)[0].numpy())
        return found

    @cached_property
    def _codes(self) -> list[np.ndarray]:
        return [self._codec.encode(pcm).T for pcm in self.recordings]

    def _batches(self, items: list) -> Iterator[list]:
        return (items[start : start + BATCH] for start in range(0, len(items), BATCH))

    def original(self) -> tuple[float, None]:
        """Return the word error rate of the teacher's audio."""
        return self._judge.rate(self.texts, self.recordings), None

    def codec(self) -> tuple[float, None]:
        """Return the word error rate after encoding and decoding with the codec."""
        return self._judge.rate(self.texts, [resynthesise(self._codec, codes) for codes in self._codes]), None

    @torch.inference_mode()
    def phonemes(self) -> tuple[float, None]:
        """Return the error rate of generated phoneme text against the teacher's phonemes, including spaces."""
        transcripts = [Transcript(script.text, script.phonemes, script.words) for script in self.scripts]
        prompts = [text_prompt(text, VOICE) for text in self.texts]
        found = [text for part in self._batches(prompts) for text in phonemise(self._network, part)]
        return error_rate([phoneme_text(each)[0] for each in transcripts], found), None

    @torch.inference_mode()
    def transcription(self) -> tuple[float, int]:
        """Return the word error rate of transcripts of the teacher's audio, and the number of complete ones."""
        found = [written(text) for part in self._batches(self._codes) for text in transcribe(self._network, part)]
        rate = error_rate([spelled_words(text) for text in self.texts], [spelled_words(text) for text in found])
        return rate, sum(bool(text) for text in found)

    def spoken(self, speaking: Speaking) -> tuple[list[np.ndarray], int]:
        """Return speech generated from characters, and the number of utterances that ended."""
        recordings = []
        ended = 0
        for index, texts in enumerate(self._batches(self.texts)):
            codes, ends = speak(self._network, texts, VOICE, replace(speaking, seed=1000 * speaking.seed + index))
            recordings += [resynthesise(self._codec, each) for each in codes]
            ended += sum(ends)
        return recordings, ended

    def speech(self, speaking: Speaking) -> tuple[float, int]:
        """Return the word error rate of generated speech, and the number of utterances that ended."""
        recordings, ended = self.spoken(speaking)
        return self._judge.rate(self.texts, recordings), ended


def plan(scales: list[float], seeds: int, test_set: str) -> dict[Figure, Callable]:
    """Return the measurements to make for one test set."""
    simple = {
        Figure(what, test_set): getattr(Evaluation, what) for what in ("original", "codec", "phonemes", "transcription")
    }
    spoken = {
        Figure("speech", test_set, scale, seed): partial(Evaluation.speech, speaking=Speaking(scale, seed=seed))
        for scale in scales
        for seed in range(seeds)
    }
    return simple | spoken


def evaluate(folder: Path, checkpoint: Path, scales: list[float], seeds: int) -> None:
    """Make all measurements that `wer.jsonl` does not contain."""
    path = folder / "wer.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for test_set in SETS:
        evaluation = Evaluation(folder, checkpoint, test_set)
        for figure, measure in plan(scales, seeds, test_set).items():
            if any(vars(figure).items() <= record.items() for record in known):
                continue
            value, ended = measure(evaluation)
            with path.open("a") as file:
                print(figure.record(value, ended), file=file)
            print(figure.record(value, ended), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of scripts and of the teacher's parts")
    parser.add_argument("--checkpoint", type=Path, required=True, help="exported checkpoint, with its codec")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    evaluate(arguments.folder, arguments.checkpoint, arguments.guidance, arguments.seeds)
