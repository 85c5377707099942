"""Speak and transcribe with OpenAI's Python package.

python examples/openai_client.py "Good morning." [--url http://HOST:PORT/v1] [--out FILE]

The server must run with the gateway: `stretto serve --gateway`.
"""

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?", default="It is twenty past nine and the garden door is open.")
    parser.add_argument("--url", default="http://localhost:8003/v1")
    parser.add_argument("--out", default="speech.wav")
    arguments = parser.parse_args()

    client = OpenAI(base_url=arguments.url, api_key="unused")  # or one of the gateway's keys
    speech = client.audio.speech.with_streaming_response
    with speech.create(
        model="tts-1",
        voice="alloy",
        input=arguments.text,
        response_format="wav",
        extra_body={"seed": 7, "guidance_scale": 2.0},  # options of this server
    ) as response:
        response.stream_to_file(arguments.out)

    with open(arguments.out, "rb") as file:
        transcript = client.audio.transcriptions.create(model="whisper-1", file=file)
    print(f"{arguments.out}: {transcript.text}")


if __name__ == "__main__":
    main()
