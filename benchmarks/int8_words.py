"""Word errors of the bundled model in int8 against its stored weights.

    python -m benchmarks.int8_words --sentences 40 --seeds 5

Random sentences of the model's domain are spoken and transcribed again by the same model in this process: both with the
stored weights, with an int8 voice, and with int8 ears. One line of JSON has the word errors of each in percent, for
each seed. The ears with the stored weights err as well, so only the differences are meaningful.
"""

import argparse
import asyncio
import json
import random
import re
from functools import partial
from itertools import islice

import numpy as np
import torch

from benchmarks.harness import CHECKPOINT, append_result, command_line
from stretto import SpeechLLM
from stretto.codecs.base import Codec, Window
from stretto.config import EngineConfig
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from training.tiny.judge import word_errors
from training.tiny.text import domain_sentence

ARGUMENTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 256 << 20,
}


def words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return re.findall(r"[a-z']+", text.lower())


async def replies(llm: SpeechLLM, prompts: list[Prompt]) -> list[tuple[np.ndarray, str]]:
    """Return the codes [K, T] and the text of each reply."""

    async def one(prompt: Prompt) -> tuple[np.ndarray, str]:
        chunks = [chunk async for chunk in llm.generate(prompt)]
        codes = [chunk.codes for chunk in chunks if chunk.codes is not None]
        text = "".join(chunk.chunk.text for chunk in chunks)
        return np.concatenate(codes, 1) if codes else np.zeros((0, 0), np.int32), text

    return await asyncio.gather(*map(one, prompts))


async def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the word errors in percent for each seed, by the weights of voice and ears."""
    preprocessor = Preprocessor(CHECKPOINT)
    errors = dict[str, list[float]]()
    stored, int8 = (SpeechLLM.launch(EngineConfig(CHECKPOINT, ARGUMENTS, int8=each)) for each in (False, True))
    try:
        for seed in range(1, arguments.seeds + 1):
            rng = random.Random(seed)
            options = json.dumps({"seed": seed})
            fitting = (each for each in iter(partial(domain_sentence, rng), None) if len(each) <= 160)
            texts = list(islice(fitting, arguments.sentences))
            asked = [preprocessor.prepare(RawRequest(text=each, task="tts", options=options)) for each in texts]
            voices = {name: await replies(llm, asked) for name, llm in (("stored", stored), ("int8", int8))}
            for name, voice, ears in (
                ("stored", "stored", stored),
                ("int8 voice", "int8", stored),
                ("int8 ears", "stored", int8),
            ):
                spoken = [samples_of(preprocessor.codec, codes) for codes, _ in voices[voice]]
                heard = [transcription(preprocessor, pcm, options) for pcm in spoken]
                found = [words(text) for _, text in await replies(ears, heard)]
                wanted = [words(each) for each in texts]
                wrong = sum(map(word_errors, wanted, found))
                errors.setdefault(name, []).append(round(100 * wrong / sum(map(len, wanted)), 2))
    finally:
        stored.shutdown()
        int8.shutdown()
    return errors


def samples_of(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Return the samples [n] of codes [K, T], decoded in one piece."""
    whole = torch.from_numpy(codes).long()[None]
    window = Window(whole, 0, 0, torch.zeros(1, dtype=torch.long), codec.initial_state(1))
    with torch.inference_mode():
        samples: np.ndarray = codec.decode(window)[0][0].numpy()
    return samples


def transcription(preprocessor: Preprocessor, pcm: np.ndarray, options: str) -> Prompt:
    """Return the prompt to transcribe samples [n] of the model's sample rate."""
    rate = preprocessor.codec.spec.sample_rate
    return preprocessor.prepare(RawRequest(pcm_in=pcm, sample_rate=rate, task="asr", options=options))


if __name__ == "__main__":
    parser = command_line(
        __doc__, "int8_words", sentences=(40, "sentences for each seed"), seeds=(5, "number of seeds")
    )
    given = parser.parse_args()
    append_result(given.out, "int8_words", {"sentences": given.sentences, "errors": asyncio.run(measure(given))})
