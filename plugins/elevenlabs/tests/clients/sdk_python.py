"""The calls of ElevenLabs' own package for Python, as its documentation shows them.

URL begins with https, because `convert_realtime` always uses TLS.
"""

import base64
from collections.abc import Iterator
from typing import Any

from elevenlabs import VoiceSettings
from elevenlabs.client import ElevenLabs
from elevenlabs.core.api_error import ApiError
from report import TEXT, URL, attempt, report, report_audio

VOICE = "JBFqnCBsd6RMkjVDRZzb"  # of the documentation
client = ElevenLabs(base_url=URL, api_key="unused")
speech = client.text_to_speech


def save(step: str, parts: Iterator[bytes], suffix: str = "mp3") -> None:
    report_audio(step, b"".join(parts), suffix)


def written() -> Iterator[str]:
    yield from ("It is twenty past nine ", "and the garden ", "door is open. ", "Come in.")


def status_of(call: Any) -> Any:
    """Return the status and the body of a call that fails."""
    try:
        call()
    except ApiError as error:
        return error.status_code, error.body
    return None


with attempt("convert"):
    save("convert", speech.convert(VOICE, text=TEXT, model_id="eleven_multilingual_v2", output_format="mp3_44100_128"))
with attempt("stream"):
    settings = VoiceSettings(stability=0.3, similarity_boost=0.8, style=0.1, use_speaker_boost=True, speed=1.1)
    more: dict[str, Any] = {"seed": 1, "language_code": "en", "previous_text": "Hello.", "enable_logging": False}
    more |= {"optimize_streaming_latency": 3, "apply_text_normalization": "auto"}
    save("stream", speech.stream(VOICE, text=TEXT, output_format="pcm_24000", voice_settings=settings, **more), "pcm")
for name, suffix in (("opus_48000_64", "opus"), ("wav_24000", "wav"), ("mp3_22050_32", "mp3")):
    with attempt(f"convert {name}"):
        save(f"convert {name}", speech.convert(VOICE, text=TEXT, output_format=name), suffix)
with attempt("convert_with_timestamps"):
    timed = speech.convert_with_timestamps(VOICE, text=TEXT)
    report_audio("convert_with_timestamps", base64.b64decode(timed.audio_base_64), "mp3")
    report("characters", value="".join(timed.alignment.characters) == TEXT)
    report("ends", value=1.0 < timed.alignment.character_end_times_seconds[-1] < 9.0)
with attempt("stream_with_timestamps"):
    chunks = list(speech.stream_with_timestamps(VOICE, text=TEXT, output_format="pcm_24000"))
    report_audio("stream_with_timestamps", b"".join(base64.b64decode(chunk.audio_base_64) for chunk in chunks), "pcm")
    letters = [letter for chunk in chunks if chunk.alignment for letter in chunk.alignment.characters]
    report("streamed characters", value="".join(letters) == TEXT)
with attempt("convert_realtime"):
    save("convert_realtime", speech.convert_realtime(VOICE, text=written(), model_id="eleven_flash_v2_5"))
with attempt("voices"):
    voices = client.voices.get_all().voices
    pages = [client.voices.search(page_size=1)]
    while pages[-1].has_more:
        pages.append(client.voices.search(page_size=1, next_page_token=pages[-1].next_page_token))
    same = [voice.voice_id for page in pages for voice in page.voices] == [voice.voice_id for voice in voices]
    report("voices", value=same and client.voices.get(voices[0].voice_id).name == voices[0].name)
    save("voice of the list", speech.convert(voices[0].voice_id, text=TEXT))
with attempt("models"):
    report("models", value=[model.model_id for model in client.models.list() if model.can_do_text_to_speech])
with attempt("errors"):
    status, body = status_of(lambda: b"".join(speech.convert("nobody", text=TEXT)))
    report("unknown voice", value=status == 404 and body["detail"]["status"] == "voice_not_found")
    status, body = status_of(lambda: b"".join(speech.convert(VOICE, text=TEXT, output_format="flac_44100")))
    report("unknown format", value=status == 422 and body["detail"][0]["loc"] == ["query", "output_format"])
    status, body = status_of(lambda: b"".join(speech.convert_realtime("nobody", text=iter([TEXT]))))
    # the body is the last message or, if the connection is closed while text is sent, the reason
    report("unknown voice in real time", value=status == 1011 and ("voice_id" in str(body) or body == "invalid_value"))
