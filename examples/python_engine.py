"""Generate speech without a server, with the bundled model's preprocessor, language model and codec in one process.

python examples/python_engine.py "Good morning." [--out FILE]

The server does the same in chunks and batches (docs/architecture.md).
"""

import argparse
import asyncio
import json
import wave

import numpy as np
import torch

from stretto import SpeechLLM
from stretto.codecs.base import Window
from stretto.config import EngineConfig
from stretto.launcher.installation import bundled_repository
from stretto.preprocessing.request import Preprocessor, RawRequest

BUNDLED = bundled_repository() / "language_model" / "1"


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?", default="Good morning.")
    parser.add_argument("--out", default="speech.wav")
    arguments = parser.parse_args()

    preprocessor = Preprocessor(BUNDLED / "checkpoint")
    options = json.dumps({"seed": 7, "guidance_scale": 2.0})
    prompt = preprocessor.prepare(RawRequest(text=arguments.text, options=options))
    engine = await SpeechLLM.start(EngineConfig.from_file(BUNDLED / "engine.json", BUNDLED / "checkpoint"))
    try:
        chunks = [chunk async for chunk in engine.generate(prompt)]
    finally:
        engine.shutdown()

    codec = preprocessor.codec
    codes = np.concatenate([chunk.codes for chunk in chunks if chunk.codes is not None], axis=1)  # [K, T]
    whole = Window(torch.from_numpy(codes).long()[None], 0, 0, torch.zeros(1, dtype=torch.long), codec.initial_state(1))
    with torch.inference_mode():
        samples, _ = codec.decode(whole)
    pcm = (samples[0].clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    with wave.open(arguments.out, "wb") as file:
        file.setparams((1, 2, codec.spec.sample_rate, 0, "NONE", ""))
        file.writeframes(pcm.tobytes())
    report = chunks[-1].chunk.report
    assert report is not None
    print(f"{arguments.out}: {codes.shape[1]} frames, {report.guided_frames} of them guided")


if __name__ == "__main__":
    asyncio.run(main())
