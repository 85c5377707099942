"""Evaluate an exported checkpoint on the test sets: python -m training.tiny.evaluate --folder DIR --checkpoint DIR

The command appends one JSON line per result to `wer.jsonl` in the folder. Existing results are not measured again.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from stretto.codecs.base import Codec, Window, load_codec
from training.tiny.clips import load_quantiser
from training.tiny.encode import encode_one
from training.tiny.encoded import Spoken
from training.tiny.export import load_exported
from training.tiny.generate import Speaking, phonemise, speak, text_prompt, transcribe, written
from training.tiny.judge import Judge, word_errors
from training.tiny.sequences import phoneme_text
from training.tiny.synthesise import Utterance, spelled_words
from training.tiny.test_sets import VOICES, load_test_sets

BATCH = 30


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
    """Quantity, test set, voice and settings of a measurement."""

    what: str
    test_set: str
    voice: str
    guidance_scale: float | None = None
    seed: int | None = None

    def record(self, value: float, ended: int | None = None) -> str:
        return json.dumps({**vars(self), "value": round(value, 2), "ended": ended})


class Evaluation:
    """Evaluation on a test set in one voice; each method measures one quantity."""

    def __init__(self, folder: Path, checkpoint: Path, test_set: str, voice: str):
        self.test_set, self.voice = test_set, voice
        self.utterances: list[Utterance] = load_test_sets(folder)[test_set, voice]
        self.texts = [utterance.text for utterance in self.utterances]
        self._folder = folder
        self._network = load_exported(checkpoint)
        self._codec = load_codec("tiny", checkpoint)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.test_set, self._folder / "judge")

    @cached_property
    def _encoded(self) -> list[Spoken]:
        quantiser = load_quantiser(self._folder / "rvq.pt")
        encoded = [encode_one(utterance, quantiser) for utterance in self.utterances]
        return [utterance for utterance in encoded if utterance is not None]

    def _batches(self, items: list) -> Iterator[list]:
        return (items[start : start + BATCH] for start in range(0, len(items), BATCH))

    def original(self) -> tuple[float, None]:
        """Return the word error rate of flite's audio."""
        return self._judge.rate(self.texts, [utterance.pcm.numpy() / 32768 for utterance in self.utterances]), None

    def codec(self) -> tuple[float, None]:
        """Return the word error rate after encoding and decoding with the codec."""
        return self._judge.rate(self.texts, [resynthesise(self._codec, u.codes) for u in self._encoded]), None

    @torch.inference_mode()
    def phonemes(self) -> tuple[float, None]:
        """Return the error rate of the generated phoneme text against flite's phonemes, including spaces."""
        wanted = [phoneme_text(utterance.transcript)[0] for utterance in self._encoded]
        prompts = [text_prompt(text, self.voice) for text in self.texts]
        return error_rate(
            wanted, [text for part in self._batches(prompts) for text in phonemise(self._network, part)]
        ), None

    @torch.inference_mode()
    def transcription(self) -> tuple[float, int]:
        """Return the word error rate of transcripts of flite's audio, and the number of complete transcripts."""
        codes = [utterance.codes for utterance in self._encoded]
        found = [written(text) for part in self._batches(codes) for text in transcribe(self._network, part)]
        rate = error_rate([spelled_words(text) for text in self.texts], [spelled_words(text) for text in found])
        return rate, sum(bool(text) for text in found)

    def speech(self, speaking: Speaking) -> tuple[float, int]:
        """Return the word error rate of speech generated from characters, and the number of utterances that ended."""
        recordings, ended = [], 0
        for index, texts in enumerate(self._batches(self.texts)):
            codes, ends = speak(self._network, texts, self.voice, replace(speaking, seed=1000 * speaking.seed + index))
            recordings += [resynthesise(self._codec, each) for each in codes]
            ended += sum(ends)
        return self._judge.rate(self.texts, recordings), ended


def plan(scales: list[float], seeds: int, test_set: str, voice: str) -> dict[Figure, Callable]:
    """Return the measurements to make for one test set in one voice."""
    simple = {
        Figure(what, test_set, voice): getattr(Evaluation, what)
        for what in ("original", "codec", "phonemes", "transcription")
    }
    spoken = {
        Figure("speech", test_set, voice, scale, seed): partial(Evaluation.speech, speaking=Speaking(scale, seed=seed))
        for scale in scales
        for seed in range(seeds)
    }
    return simple | spoken


def evaluate(folder: Path, checkpoint: Path, scales: list[float], seeds: int, voices: list[str]) -> None:
    """Make all measurements that `wer.jsonl` does not contain."""
    path = folder / "wer.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for voice in voices:
        for test_set in ("domain", "open"):
            evaluation = Evaluation(folder, checkpoint, test_set, voice)
            for figure, measure in plan(scales, seeds, test_set, voice).items():
                if any(vars(figure).items() <= record.items() for record in known):
                    continue
                value, ended = measure(evaluation)
                with path.open("a") as file:
                    print(figure.record(value, ended), file=file)
                print(figure.record(value, ended), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="working folder of the training")
    parser.add_argument("--checkpoint", type=Path, required=True, help="exported checkpoint, with its codec")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--voices", nargs="+", default=list(VOICES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    evaluate(arguments.folder, arguments.checkpoint, arguments.guidance, arguments.seeds, arguments.voices)
