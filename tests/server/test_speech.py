"""One utterance from its first response to its last."""

import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.harness import CHECKPOINT
from stretto.codecs.base import load_codec
from stretto.families.tiny.family import TINY
from stretto.launcher.installation import UnixConnection
from stretto_client import SpeechClient
from tests.server.conftest import Server
from tests.server.listening import Answer, Stream
from tests.server.published import one_shot
from tests.tiers import by_night

pytestmark = pytest.mark.server

SENTENCE = "the garden door is open"
REPORT = {
    "finish_reason",
    "input_audio_s",
    "num_prompt_rows",
    "num_text_tokens",
    "num_frames",
    "guided_frames",
    "guidance_scale",
    "seed",
    "queue_s",
    "first_frame_s",
    "total_s",
    "audio_s",
    "decode_s",
    "first_sound_s",
}


@pytest.fixture(scope="module")
def spoken(_server: Server) -> Answer:
    _server.start()
    return _server.ask({"seed": 7}, text=SENTENCE)


def test_speech_streams_and_ends_with_a_complete_event(spoken: Answer) -> None:
    assert spoken.error is None
    assert [event["index"] for event in spoken.events] == list(range(len(spoken.events)))
    assert len({event["utterance"] for event in spoken.events}) == 1
    assert [event["is_final"] for event in spoken.events] == [False] * (len(spoken.events) - 1) + [True]
    report = spoken.report
    assert report.keys() >= REPORT
    assert report["finish_reason"] in ("stop", "length")
    assert report["seed"] == 7
    assert report["num_frames"] > 0
    assert report["num_text_tokens"] > 0
    assert 0 < report["first_frame_s"] < report["total_s"]


async def test_server_has_spoken_before_it_is_ready_and_names_its_model(server: Server) -> None:
    (num_samples,) = re.findall(r"the first request took \d+\.\d s; samples in the reply: (\d+)\n", server.said)[-1:]
    assert int(num_samples) > 4800
    async with SpeechClient(f"localhost:{server.grpc}") as client:
        record = json.loads(await client.server_name())
    served = json.loads(server.pid_file.read_text())["model"]
    assert record.pop("weights").startswith("sha256:")
    assert "vllm" in record.pop("numerics")
    assert record == {"model": "tiny", "configuration": served["configuration"]}


def test_served_speech_guides_every_frame(spoken: Answer, server: Server) -> None:
    assert spoken.report["guidance_scale"] > 1
    assert spoken.report["guided_frames"] == spoken.report["num_frames"]
    assert server.metric("unguided_total") == 0
    server.until(lambda: server.metric("decoder_frames_total") >= spoken.report["num_frames"])


def test_dictionary_of_a_request_changes_the_speech_but_not_the_words(server: Server) -> None:
    """The bundled model speaks the other spelling, and the times are those of the text as written."""
    spellings = {"garden": "kitchen", "door is": "window"}
    given = {"seed": 7, "output": {"codes": True}}
    replaced = server.ask(given | {"pronunciations": spellings}, text="The Garden door is open.")
    other = server.ask(given, text="The kitchen window open.")
    assert replaced.error is None
    assert np.array_equal(replaced.codes, other.codes)
    words = [(word["word"], word["text_start"], word["text_end"]) for each in replaced.events for word in each["words"]]
    assert words == [("The", 0, 3), ("Garden", 4, 10), ("door is", 11, 18), ("open", 19, 23)]
    refused = server.ask({"pronunciations": {"a": "<|end|>"}}, text="a")
    assert refused.error is not None
    assert refused.error.endswith("options.pronunciations.a: expected text without characters of markup, got '<'")


@pytest.mark.parametrize("seconds", [0.6, *by_night(0.4, 0.8)])
def test_reply_at_its_limit_fades_out(server: Server, seconds: float) -> None:
    """The samples equal a one-shot decode of the reply's codes whose last 5 ms fade to zero, for any chunk sizes."""
    codec = load_codec("tiny", CHECKPOINT)
    options = {"seed": 3, "max_audio_s": seconds, "output": {"codes": True}}
    for chunking in ({"first_frames": 1, "steady_frames": 1}, {"first_frames": 25}):
        answer = server.ask(options | {"chunking": chunking}, text="the garden door is open")
        assert answer.report["finish_reason"] == "length"
        codes = answer.codes[list(TINY.layout.codebook_streams)]
        np.testing.assert_allclose(answer.pcm, one_shot(codec, codes, is_cut=True), atol=1e-4)
        assert answer.pcm[-1] == 0
        assert np.abs(one_shot(codec, codes, is_cut=False)[-1]) > 0.001


def test_event_times_match_the_audio(spoken: Answer) -> None:
    end_s = 0.0
    for response in spoken.responses:
        event = response.event
        assert event["start_s"] == pytest.approx(end_s)
        num_samples = 0 if response.pcm is None else len(response.pcm)
        assert event["duration_s"] == pytest.approx(num_samples / event["sample_rate"])
        end_s += event["duration_s"]
    assert end_s == pytest.approx(spoken.report["audio_s"])
    assert np.abs(spoken.pcm).max() <= 1
    assert np.abs(spoken.pcm).max() > 0.01


def test_text_precedes_audio_and_has_no_samples(spoken: Answer) -> None:
    segments = [response.event["segment"] for response in spoken.responses]
    assert segments[0] == "text"
    assert all(r.pcm is None for r in spoken.responses if r.event["segment"] == "text")
    assert spoken.text.strip()


def test_first_audio_is_sent_before_the_last(server: Server) -> None:
    """The chunks have sizes that do not depend on the machine's load."""
    answer = server.ask({"seed": 7, "chunking": {"deterministic": True}}, text=SENTENCE)
    times = [response.at_s for response in answer.responses if response.pcm is not None]
    assert len(times) > 2
    assert times[0] < times[-1]
    sizes = [len(response.pcm) for response in answer.responses if response.pcm is not None]
    assert sizes[0] < max(sizes)


def test_speech_depends_on_the_seed(spoken: Answer, server: Server) -> None:
    again, other = server.ask({"seed": 7}, text=SENTENCE), server.ask({"seed": 8}, text=SENTENCE)
    assert again.text == spoken.text
    np.testing.assert_allclose(again.pcm, spoken.pcm, atol=1e-4)
    assert len(other.pcm) != len(spoken.pcm) or np.abs(other.pcm - spoken.pcm).max() > 1e-2


def test_random_seed_is_reported(server: Server) -> None:
    first = server.ask({"max_audio_s": 0.5}, text=SENTENCE)
    again = server.ask({"max_audio_s": 0.5, "seed": first.report["seed"]}, text=SENTENCE)
    np.testing.assert_allclose(again.pcm, first.pcm, atol=1e-4)


@pytest.mark.parametrize("form", ["file", *by_night("samples", "quiet samples")])
def test_transcription_returns_text_without_audio(spoken: Answer, server: Server, form: str) -> None:
    pcm = spoken.pcm.astype(np.float32)
    if form == "file":
        held = io.BytesIO()
        soundfile.write(held, pcm, 24_000, format="FLAC")
        heard = server.ask(audio=held.getvalue(), task="asr")
    else:
        pcm = pcm * np.float32(0.03 if form == "quiet samples" else 1)
        heard = server.ask(pcm_in=pcm, sample_rate=np.array([24_000], np.int32))
    assert heard.error is None
    words = set(SENTENCE.split())
    assert len(words & set(heard.text.split())) > len(words) / 2, heard.text
    assert all(response.pcm is None for response in heard.responses)
    assert heard.events[-1]["is_final"]
    assert heard.report["num_frames"] == 0


def test_transcript_of_a_recording_without_speech_is_empty(server: Server) -> None:
    hum = 0.1 * np.sin(2 * np.pi * 50 / 16_000 * np.arange(32_000)).astype(np.float32)
    heard = server.ask(pcm_in=hum, sample_rate=np.array([16000], np.int32))
    assert (heard.error, heard.text) == (None, "")
    assert (heard.report["finish_reason"], heard.report["input_audio_s"]) == ("stop", 2.0)


def test_triton_http_endpoint_streams_if_allowed(server: Server) -> None:
    asked = json.dumps({"text": SENTENCE, "options": '{"seed": 7, "max_audio_s": 0.5}'})
    with pytest.raises(urllib.error.HTTPError) as closed:
        urllib.request.urlopen(f"http://localhost:{server.http}/v2/models/speech/generate_stream", b"{}", timeout=60)
    assert "start the server with --allow http" in closed.value.read().decode()
    (socket,) = Path("/dev/shm").glob(f"stretto_launch_{server.launcher.pid}_*.run/http")  # opened by --allow http
    triton = UnixConnection(socket, timeout_s=60)
    triton.request("POST", "/v2/models/speech/generate_stream", asked)
    page = triton.getresponse().read().splitlines()
    triton.close()
    records = [json.loads(line.removeprefix(b"data: ")) for line in page if line.startswith(b"data: ")]
    assert json.loads(records[-1]["event"])["is_final"]
    assert sum(len(record.get("pcm", [])) for record in records) == pytest.approx(0.5 * 24_000, rel=0.1)


def test_end_is_signalled_with_and_without_empty_final_responses(server: Server) -> None:
    asked = {"text": SENTENCE, "options": '{"seed": 7, "max_audio_s": 0.5}'}
    with_flag = server.stream(**asked)
    flags = []
    while not flags or not flags[-1]:
        flags.append(with_flag.next().has_final_flag)
    with_flag.cancel()
    assert flags == [False] * (len(flags) - 1) + [True]
    without = Stream(server.grpc, empty_final=False, **asked)
    seen = []
    while not seen or not seen[-1].event["is_final"]:
        seen.append(without.next())
    without.cancel()
    assert all(response.event is not None for response in seen)
