"""Speak a language model's answer while the model generates it.

OPENAI_BASE_URL=… OPENAI_API_KEY=… python examples/stream_llm.py "Why is the sky blue?" --model NAME

The language model is any server with OpenAI's chat API; the speech server is `stretto serve`.
"""

import argparse
import asyncio
import wave
from collections.abc import AsyncIterator

from openai import AsyncOpenAI

from stretto_client import SpeechClient


async def written(question: str, model: str) -> AsyncIterator[str]:
    """Yield the pieces of the answer as the language model generates them."""
    async with AsyncOpenAI() as llm:
        messages = [{"role": "user", "content": question}]
        async for chunk in await llm.chat.completions.create(model=model, messages=messages, stream=True):
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                print(piece, end="", flush=True)
                yield piece


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument("--model", required=True, help="name of the language model")
    parser.add_argument("--server", default="localhost:8001", help="gRPC address of the speech server")
    parser.add_argument("--out", default="answer.wav")
    arguments = parser.parse_args()

    text = written(arguments.question, arguments.model)
    async with SpeechClient(arguments.server) as client:
        with wave.open(arguments.out, "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            async for event in client.speak(text, encoding="pcm_s16le", sample_rate=16_000, markup="auto"):
                if event.pcm is not None:
                    file.writeframes(event.pcm.tobytes())
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    asyncio.run(main())
