"""Complete requests become prompts, with a counting codec."""

import json
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.tiny.family import FIRST_CODE, TINY
from stretto.family.base import DrawRules
from stretto.family.input_tracks import TextTrack
from stretto.family.plugin import read_family
from stretto.preprocessing.request import Preprocessor, RawRequest, within_rate
from stretto.records.chunk import Alignment
from stretto.records.prompt import Prompt
from stretto.streams.layout import Segment
from tests.fakes import FrameCounter
from tests.patience import PATIENCE_S
from tests.recordings import speech


@pytest.fixture
def preprocessor(tmp_path: Path) -> Preprocessor:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    return Preprocessor(tmp_path, codec=FrameCounter())


def wav(seconds: float, rate: int = 22_050, channels: int = 2) -> bytes:
    buffer = BytesIO()
    pcm = speech(int(seconds * rate), rate)
    soundfile.write(buffer, np.stack([pcm] * channels, 1), rate, format="WAV")
    return buffer.getvalue()


PCM = speech(8_000, 8_000)


def test_text_becomes_a_prompt_with_tts_defaults(preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(RawRequest(text="It is 9:20."))
    assert (prompt.task, prompt.words) == ("tts", ("it", "is", "nine", "twenty"))
    assert prompt.sampling.draws_as(TINY.task("tts").sampling)
    assert prompt.sampling.seed is not None
    assert Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows) == prompt


@pytest.mark.parametrize(
    ("seconds", "options", "rows"),
    [
        (0.3, None, (0, 24 + 12)),
        (2.0, None, (0, 24 + 80)),
        (2.0, '{"text": {"max_rows": 50}}', (0, 50)),
        (2.0, '{"text": {"min_rows": 200, "max_rows": 300}}', (24 + 80, 24 + 80)),
        (17.99, None, (0, 24 + 720)),
    ],
)
def test_text_of_a_recording_is_limited_by_its_length(
    preprocessor: Preprocessor, seconds: float, options: str | None, rows: tuple[int, int]
) -> None:
    pcm = speech(round(seconds * 16_000), 16_000)
    prompt = preprocessor.prepare(RawRequest(pcm_in=pcm, sample_rate=16_000, options=options))
    assert (prompt.sampling.text.min_rows, prompt.sampling.text.max_rows) == rows


@pytest.mark.parametrize("name", ["opuslm", "opuslm_dialogue", "tiny", "vita_audio"])
def test_transcripts_of_every_family_are_limited_and_answers_are_not(name: str) -> None:
    family = read_family({"speech_family": name})
    assert [task.name for task in family.tasks if task.writes_down] == ["asr"]
    task = family.task("asr")
    of_a_word, of_a_minute = (within_rate(task.sampling, task, seconds).text for seconds in (0.3, 60.0))
    assert 20 <= of_a_word.max_rows <= 40
    assert of_a_word.min_rows == task.sampling.text.min_rows
    assert of_a_minute.max_rows == min(task.sampling.text.max_rows, task.text_rate.max_rows(60.0))


SPOKEN = "The Leo’s cat, at 5."


@pytest.mark.parametrize(
    ("spellings", "words", "sources"),
    [
        ({}, "the leo's cat at five", ["The", "Leo’s", "cat", "at", "5"]),
        ({"Leo": "layo"}, "the layo's cat at five", ["The", "Leo’s", "cat", "at", "5"]),
        ({"leo": "lee oh"}, "the lee oh's cat at five", ["The", "Leo’s", "Leo’s", "cat", "at", "5"]),
        ({"Leo’s cat": "x"}, "the ex at five", ["The", "Leo’s cat", "at", "5"]),
        ({"The": "a", "5": "six"}, "a leo's cat at six", ["The", "Leo’s", "cat", "at", "5"]),
    ],
    ids=range(5),
)
def test_words_of_a_dictionary_are_replaced_and_keep_their_places(
    tmp_path: Path, spellings: dict[str, str], words: str, sources: list[str]
) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text(json.dumps(spellings))
    of_request = Preprocessor(tmp_path, codec=FrameCounter())
    of_server = Preprocessor(tmp_path, codec=FrameCounter(), pronunciations=lexicon)
    options = json.dumps({"pronunciations": spellings})
    messages = json.dumps([{"role": "user", "text": SPOKEN}])
    for made, raw in (
        (of_request, RawRequest(text=SPOKEN, options=options)),
        (of_request, RawRequest(messages=messages, options=options)),
        (of_server, RawRequest(text=SPOKEN)),
    ):
        prompt = made.prepare(raw)
        assert " ".join(prompt.words) == words
        assert [each.word for each in prompt.sources] == sources
        assert [SPOKEN[each.start : each.end] for each in prompt.sources] == sources


def test_entries_of_a_request_precede_those_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text('{"Leo": "lion", "Zoe": "zoey", "ipa": {"phonemes": "x", "alphabet": "ipa"}}')
    made = Preprocessor(tmp_path, codec=FrameCounter(), pronunciations=lexicon)
    prompt = made.prepare(RawRequest(text="Leo Zoe ipa", options='{"pronunciations": {"leo": "layo"}}'))
    assert prompt.words == ("layo", "zoey", "ipa")
    lexicon.write_text('{"SQL": "<|end|>"}')
    with pytest.raises(CheckpointError, match=r"lexicon\.json: SQL: expected text without characters of markup"):
        Preprocessor(tmp_path, codec=FrameCounter(), pronunciations=lexicon)


def test_replacement_is_checked_like_the_text(preprocessor: Preprocessor) -> None:
    """A dictionary cannot make a text longer than a request may be, or add letters that the model does not read."""
    for spelling, message in (
        ("long " * 70 + "x", "text: expected at most 300 characters"),
        ("привет", "text: expected"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            preprocessor.prepare(RawRequest(text="a", options=json.dumps({"pronunciations": {"a": spelling}})))


def test_seeds_are_random_unless_requested(preprocessor: Preprocessor) -> None:
    seeds = {preprocessor.prepare(RawRequest(text="a")).sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert preprocessor.prepare(RawRequest(text=b"a", options=b'{"seed": 5}')).sampling.seed == 5


@pytest.mark.parametrize(
    "raw",
    [
        RawRequest(audio=wav(1.0), task="asr"),
        RawRequest(audio=wav(1.0)),
        RawRequest(pcm_in=PCM, sample_rate=8_000, task=b"asr"),
        RawRequest(pcm_in=PCM, sample_rate=8_000, messages='[{"role": "user", "audio": "pcm_in"}]'),
        RawRequest(audio=wav(1.0, 48_000, 1), messages='[{"role": "user", "audio": "audio"}]'),
    ],
)
def test_audio_input_becomes_25_frames_per_second(preprocessor: Preprocessor, raw: RawRequest) -> None:
    prompt = preprocessor.prepare(raw)
    assert (prompt.task, prompt.words, prompt.input_audio_s) == ("asr", (), 1.0)
    num_silent = 15  # 0.3 s at both ends
    assert len(prompt.rows) == 3 + 25 + num_silent + TINY.layout.max_delay
    assert prompt.rows[2 + 3 : 2 + 3 + 25, 1].tolist() == [FIRST_CODE + frame for frame in range(25)]


def test_user_message_prompt_equals_text_prompt(preprocessor: Preprocessor) -> None:
    message = RawRequest(messages='[{"role": "user", "text": "hello"}]', options='{"seed": 1}')
    text = RawRequest(text="hello", options='{"seed": 1}')
    assert np.array_equal(preprocessor.prepare(message).rows, preprocessor.prepare(text).rows)


def test_longest_audio_fits_the_model(preprocessor: Preprocessor) -> None:
    rows = preprocessor.prepare(RawRequest(audio=wav(18))).rows
    assert len(rows) + TINY.task("asr").sampling.text.max_rows <= TINY.max_model_len


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawRequest(), "text: expected at least one of text, audio, pcm_in and messages, got none"),
        (RawRequest(text="a", audio=b""), "audio: expected only text for task 'tts', got audio and text"),
        (
            RawRequest(audio=b"", pcm_in=PCM),
            "pcm_in: expected either audio or pcm_in, because there are no messages, got both",
        ),
        (
            RawRequest(messages='[{"role": "user", "codes": [[0]]}]'),
            "messages[0].codes: expected audio samples (this model does not accept codes), got codes",
        ),
        (RawRequest(text=""), "text: expected text with a word that can be spoken, got ''"),
        (RawRequest(text="a" * 10**6), "text: expected at most 300 characters, got 1000000 characters"),
        (RawRequest(text=b"\xff"), "text: expected UTF-8, got a byte 0xff at 0"),
        (RawRequest(text="a", task="asr"), "audio: expected audio for task 'asr', got text"),
        (RawRequest(text="a", sample_rate=8_000), "sample_rate: expected no value without pcm_in, got 8000"),
        (RawRequest(pcm_in=PCM[:200], sample_rate=8_000), "pcm_in: expected at least 0.04 s, got 0.0250 s"),
        (RawRequest(audio=wav(18.1)), "audio: expected at most 18 s, got more"),
        (RawRequest(audio=(wav(1), wav(1))), "audio: expected one file per turn with audio, 1, got 2 files"),
        (
            RawRequest(audio=(b"",) * 17, messages=json.dumps([{"role": "user", "audio": "audio"}] * 17)),
            "audio: expected at most 16 files, got 17 files",
        ),
        (RawRequest(text="a", messages="[]"), "messages: expected a JSON list of 1 to 64 turns, got 0"),
        (RawRequest(messages='[{"role": "user", "text": "!"}]'), "messages[0].text: expected text with a word"),
        (
            RawRequest(text="a", messages='[{"role": "user", "text": "b"}]'),
            "messages: expected the inputs messages, got text and messages",
        ),
        (
            RawRequest(messages='[{"role": "user", "audio": "audio"}]'),
            "messages: expected the inputs audio and messages, got messages",
        ),
    ],
)
def test_invalid_request_error_names_the_field(preprocessor: Preprocessor, raw: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        preprocessor.prepare(raw)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            RawRequest(audio=(b"a", b"")),
            "audio[1]: expected the bytes of a wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac file, got 0 bytes",
        ),
        (RawRequest(audio=bytes(20_000_001)), "audio: expected at most 20000000 bytes, got 20000001 bytes"),
        (
            RawRequest(audio=(bytes(16_000_001),) * 4),
            "audio: expected at most 64000000 bytes of audio and images in a request, got 64000004 bytes",
        ),
        (
            RawRequest(pcm_in=np.zeros(16_000_001, np.float32)),
            "pcm_in: expected at most 64000000 bytes of audio and images in a request, got 64000004 bytes",
        ),
    ],
)
def test_invalid_audio_sizes_are_refused_before_decoding(raw: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        raw.num_audio_bytes()
    assert str(caught.value) == message


def test_all_audio_bytes_are_counted() -> None:
    assert RawRequest(text="a").num_audio_bytes() == 0
    assert RawRequest(audio=(b"ab", b"c"), pcm_in=PCM[:2]).num_audio_bytes() == 3 + 8


def test_kept_request_copies_its_samples() -> None:
    samples = PCM.copy()
    kept = RawRequest(pcm_in=samples).kept()
    samples[:] = 1
    assert np.array_equal(kept.pcm_in, PCM)


def test_text_requests_do_not_wait_for_audio_encoding(preprocessor: Preprocessor) -> None:
    begun, may_end, was_let_go = threading.Event(), threading.Event(), []
    encode = preprocessor.codec.encode

    def slow(pcm: np.ndarray) -> np.ndarray:
        begun.set()
        was_let_go.append(may_end.wait(PATIENCE_S))
        return encode(pcm)

    preprocessor.codec.encode = slow
    listening = threading.Thread(target=preprocessor.prepare, args=(RawRequest(audio=wav(1.0)),))
    listening.start()
    assert begun.wait(PATIENCE_S)
    assert preprocessor.prepare(RawRequest(text="a")).task == "tts"
    may_end.set()
    listening.join(PATIENCE_S)
    assert was_let_go == [True]


def test_preprocessor_refuses_a_checkpoint_of_unknown_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "huge"}')
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        Preprocessor(tmp_path, codec=FrameCounter())


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("heart"))
KEYS = st.sampled_from(
    "seed guidance scale policy voice text audio temperature top_k top_p min_rows max_rows max_audio_s role".split()
)
JSON = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)), max_leaves=8
)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(field=st.sampled_from(["options", "messages"]), value=st.one_of(JSON.map(json.dumps), st.text(), st.binary()))
def test_arbitrary_json_is_prepared_or_refused(preprocessor: Preprocessor, field: str, value: str | bytes) -> None:
    raw = RawRequest(**({"text": "a"} if field == "options" else {}) | {field: value})
    try:
        prompt = preprocessor.prepare(raw)
    except InvalidRequest as error:
        assert len(str(error)) < 400  # noqa: PT017 - either outcome is fine; this is about the refusal's length
        return
    assert msgspec.msgpack.decode(prompt.to_bytes())["task"] == "tts"


ALIGNED = '{"words": "aligned"}'


@pytest.fixture
def aligning(tmp_path: Path) -> Preprocessor:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    return Preprocessor(tmp_path, codec=FrameCounter(), has_aligner=True)


def test_a_transcript_is_aligned_with_its_recording_at_16_khz(aligning: Preprocessor) -> None:
    pcm = np.linspace(-1, 1, 8_000, dtype=np.float32)
    prompt = aligning.prepare(RawRequest(pcm_in=pcm, sample_rate=16_000, options=ALIGNED))
    assert prompt.alignment is not None
    assert prompt.alignment.text == ""
    recording = np.frombuffer(prompt.alignment.recording, np.int16)
    np.testing.assert_array_equal(recording, np.rint(pcm * 32_767).astype(np.int16))
    assert Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows).alignment == prompt.alignment


def test_alignment_is_skipped_for_families_with_word_times(aligning: Preprocessor, preprocessor: Preprocessor) -> None:
    for each in (aligning, preprocessor):
        prompt = each.prepare(RawRequest(text="a cat", options=ALIGNED))
        assert (prompt.words, prompt.alignment) == (("a", "cat"), None)
    assert aligning.prepare(RawRequest(text="a cat")).alignment is None


@pytest.mark.parametrize(("text_segment", "text"), [(False, "It's 9:20."), (True, "")])
def test_alignment_uses_the_input_text_unless_the_model_generates_it(
    aligning: Preprocessor, text_segment: bool, text: str
) -> None:
    aligning.family = replace(aligning.family, drawing=DrawRules())
    if not text_segment:
        tasks = [replace(task, segments=(Segment.AUDIO,)) if task.speaks else task for task in aligning.family.tasks]
        aligning.family = replace(aligning.family, tasks=tuple(tasks))
    prompt = aligning.prepare(RawRequest(text="It's 9:20.", options=ALIGNED))
    assert prompt.alignment == Alignment(text)
    if not text_segment:
        track = TextTrack(1, pad_id=1, end_id=2)
        aligning.family = replace(aligning.family, track=track)
        options = json.dumps(json.loads(ALIGNED) | {"text_mode": "open"})
        prompt = aligning.prepare(RawRequest(text="It's", options=options))
        assert (prompt.alignment, prompt.is_open) == (Alignment(), True), "the text follows"


def test_word_times_are_refused_if_unavailable(
    aligning: Preprocessor, preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = RawRequest(pcm_in=PCM, sample_rate=8_000, options=ALIGNED)
    with pytest.raises(InvalidRequest, match=r"options.words: expected no value \(this server has no aligner"):
        preprocessor.prepare(recorded)
    with pytest.raises(InvalidRequest, match=r"options.words: expected aligned, got 'exact'"):
        aligning.prepare(replace(recorded, options='{"words": "exact"}'))
    monkeypatch.setattr("stretto.preprocessing.request.MAX_ALIGNED_S", 0.5)
    with pytest.raises(InvalidRequest, match=r"options.words: expected a recording of at most 0.5 s, got 1.0 s"):
        aligning.prepare(recorded)
    monkeypatch.setattr("stretto.preprocessing.request.TRANSCRIBE", "other")
    with pytest.raises(InvalidRequest, match=r"options.words: expected no value \(only speech and 'other' of one"):
        aligning.prepare(recorded)


def test_recordings_are_encoded_without_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would otherwise encode a recording to other codes than a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    Preprocessor(tmp_path, codec=FrameCounter())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
