"""Measure transcripts of altered recordings: python -m training.tiny.ears --folder DIR --checkpoint DIR

The folder has what `teacher.cut_teacher` wrote. The recordings are the teacher's domain sentences. As in the server,
the family brings them to one level and removes silence; then codec and language model read them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from stretto.codecs.tiny.codec import SAMPLE_RATE, TinyCodec
from stretto.codecs.tiny.codec import load as load_tiny
from stretto.families.tiny.recording import extract_speech
from training.tiny.alterations import Alteration, coded, inverted, louder, resampled
from training.tiny.evaluate import BATCH, error_rate
from training.tiny.export import load_exported
from training.tiny.generate import transcribe, written
from training.tiny.network import Network
from training.tiny.render import speech
from training.tiny.scripts import cased
from training.tiny.teacher import Head, Reader, Teacher
from training.tiny.test_sets import domain_sentences
from training.tiny.words import spelled_words

ALTERATIONS: dict[str, Alteration] = {
    "unaltered": louder(0),
    **{f"{level:+d} dB": louder(level) for level in (-30, -15, 6, 9)},
    "silence of 0.5 s": lambda pcm: np.pad(pcm, SAMPLE_RATE // 2),
    "inverted": inverted,
    "8 kHz": resampled(8000),
    "12 kHz": resampled(12_000),
    "16 kHz": resampled(16_000),
    "mu-law, 8 kHz": coded("pcm_mulaw", "wav", 8000),
    "mp3, 24 kbit/s": coded("mp3", "mp3", bit_rate=24_000),
    "opus, 16 kbit/s": coded("libopus", "ogg", bit_rate=16_000),
}


def recordings(folder: Path, codec: TinyCodec) -> tuple[list[str], list[np.ndarray]]:
    """Return the domain sentences, and the teacher's samples of each."""
    reader = Reader()
    teacher = Teacher(folder)
    head = Head(folder, "cpu")
    texts = []
    found = []
    for script in (reader.script([cased(text)]) for text in domain_sentences()):
        spoken = teacher.speak(script)
        hidden = torch.from_numpy(spoken.hidden)[None]
        pitch_hz = torch.from_numpy(spoken.pitch_hz)[None]
        texts.append(script.text)
        found.append(speech(head, codec.decoder, hidden, pitch_hz)[0].numpy())
    return texts, found


@torch.inference_mode()
def transcripts(network: Network, codec: TinyCodec, altered: list[np.ndarray]) -> list[str]:
    """Return the transcript of each recording, empty if the recording has no speech."""
    heard = [extract_speech(pcm, SAMPLE_RATE) for pcm in altered]
    codes = [codec.encode(pcm).T for pcm in heard if pcm is not None]
    batches = (codes[start : start + BATCH] for start in range(0, len(codes), BATCH))
    found = iter([written(text) for batch in batches for text in transcribe(network, batch)])
    return ["" if pcm is None else next(found) for pcm in heard]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the teacher's parts")
    parser.add_argument("--checkpoint", type=Path, required=True, help="exported checkpoint, with its codec")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_tiny(arguments.checkpoint)
    network = load_exported(arguments.checkpoint)
    texts, clean = recordings(arguments.folder, codec)
    words = [spelled_words(text) for text in texts]
    for name, alter in ALTERATIONS.items():
        found = transcripts(network, codec, [alter(pcm) for pcm in clean])
        rate = error_rate(words, [spelled_words(text) for text in found])
        empty = sum(not text for text in found)
        print(
            json.dumps({"recording": name, "sentences": len(texts), "wer": round(rate, 1), "empty": empty}), flush=True
        )


if __name__ == "__main__":
    main()
