"""Write the audio samples for docs/: python -m training.tiny.samples --checkpoint DIR --out DIR"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from stretto.codecs.base import load_codec
from stretto.codecs.tiny.codec import SAMPLE_RATE
from training.tiny.evaluate import resynthesise
from training.tiny.export import load_exported
from training.tiny.generate import Speaking, speak

SENTENCES = {
    "garden_door": "it is twenty past nine and the garden door is open.",
    "train": "the next train to vienna leaves at quarter to eleven.",
    "shopping": "add coffee and tomatoes to the shopping list, please.",
    "number": "the number is three one four one five nine.",
    "birch_canoe": "the birch canoe slid on the smooth planks.",
}
VOICE = "heart"
UNGUIDED = "birch_canoe"


def write_samples(checkpoint: Path, out: Path) -> None:
    """Write each sentence in the voice, and one sentence also without guidance."""
    network = load_exported(checkpoint)
    codec = load_codec("tiny", checkpoint)
    out.mkdir(parents=True, exist_ok=True)

    def write(names: list[str], speaking: Speaking, suffix: str = "") -> None:
        codes, _ = speak(network, [SENTENCES[name] for name in names], VOICE, speaking)
        for name, each in zip(names, codes, strict=True):
            pcm = resynthesise(codec, each)
            scaled = pcm * (0.7 / np.abs(pcm).max())
            soundfile.write(out / f"{name}{suffix}.mp3", scaled, SAMPLE_RATE, format="MP3")

    write(list(SENTENCES), Speaking())
    write([UNGUIDED], replace(Speaking(), guidance_scale=1.0), "_unguided")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_samples(arguments.checkpoint, arguments.out)
