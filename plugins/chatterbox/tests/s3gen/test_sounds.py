"""Recorded voices in the decoder sound like voices in the checkpoint, and are kept while an utterance uses them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.chatterbox.lab import random_chatterbox
from stretto.config import DecoderConfig
from stretto.decoder.windows import SoundTable
from stretto.decoder.worker import DecoderWorker
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk, Sound
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes
from stretto_chatterbox.s3gen import MAX_PROMPT_TOKENS, S3GenCodec, load
from tests.fakes import RecordedReply
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> S3GenCodec:
    return load(random_chatterbox.convert(tmp_path_factory.mktemp("chatterbox")))


@pytest.fixture
def codec(loaded: S3GenCodec) -> Iterator[S3GenCodec]:
    """Yield the codec without recorded voices."""
    yield loaded
    loaded.recorded.voices.clear()


def sound_of(codec: S3GenCodec, voice: int) -> Sound:
    """Return a voice from the checkpoint in the form of a recording."""
    own = codec.voices[voice]
    return Sound.from_arrays(*(each.numpy() for each in (own.tokens, own.mel.T, own.speaker)))


@pytest.fixture(params=[0, 16], ids=["no room", "room"])
def worker(codec: S3GenCodec, request: pytest.FixtureRequest) -> Iterator[DecoderWorker]:
    worker = DecoderWorker(codec, DecoderConfig(codec="s3gen", stop_timeout_s=PATIENCE_S, reference_mb=request.param))
    yield worker
    worker.stop()


def test_recorded_voices_are_bit_identical_to_checkpoint_voices(codec: S3GenCodec, worker: DecoderWorker) -> None:
    """Two are open simultaneously, then the first again; samples are bit-identical."""
    codes = random_codes(codec, 1, FRAMES)
    turns = (("a", 0), ("b", 1), ("c", 0))
    replies = {}
    for index, part in enumerate(np.split(codes[0].numpy(), 2, axis=1)):
        for name, voice in turns:
            sound = sound_of(codec, voice) if index == 0 else None
            reply = replies[name, index] = RecordedReply(None, (name, index))
            worker.push(name, Chunk(index, Segment.AUDIO, is_final=index == 1, sound=sound), part, reply)
    alone = dict[int, np.ndarray]()
    for name, voice in turns:
        answer = replies[name, 1].wait()
        assert answer.error is None
        alone[voice] = spoken_by(codec, codes, voice)
        np.testing.assert_array_equal(answer.pcm, alone[voice])
    assert not np.array_equal(alone[0], alone[1])


def spoken_by(codec: S3GenCodec, codes: Any, voice: int) -> np.ndarray:
    """Decode `codes` [1, 1, T] in a voice from the checkpoint."""
    return codec.speak(codes[0, 0], codec.voices[voice]).numpy()


def test_voices_in_use_are_kept_and_the_oldest_evicted_first(codec: S3GenCodec) -> None:
    first, second = sound_of(codec, 0), sound_of(codec, 1)
    third = replace(first, x_vector=second.x_vector)
    table = SoundTable(codec, first.num_bytes + second.num_bytes)
    (one, key), (two, other) = table.acquire(first), table.acquire(second)
    assert table.acquire(first)[0] == one
    assert {one, two} == {2, 3}
    table.release(key)
    table.release(other)
    assert table.acquire(third)[0] == 4  # the second voice, which nothing uses, is removed
    assert set(codec.recorded.voices) == {one, 4}
    assert table.acquire(second)[0] == two  # its number is free again
    assert table.num_bytes > first.num_bytes + second.num_bytes  # all three are in use
    for each in (first, second, third):
        table.release(each.digest)
    assert set(codec.recorded.voices) == {two, 4}
    for _ in range(2):
        table._max_bytes = 0
        table.acquire(first)
        table.release(first.digest)
    assert (table.num_bytes, codec.recorded.voices) == (0, {})


ONE = Sound.from_arrays(np.zeros(1, np.int32), np.zeros((2, 80), np.float32), np.zeros(192, np.float32))
LONG = MAX_PROMPT_TOKENS + 1


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (replace(ONE, tokens=b"12345"), "chunk.sound.tokens: expected a multiple of 4 bytes, got 5 bytes"),
        (replace(ONE, mel=b"1234"), "chunk.sound.mel: expected a multiple of 320 bytes, got 4 bytes"),
        (replace(ONE, mel=b""), r"chunk.sound.mel: expected shape \[2, 80\], got \[0, 80\]"),
        (replace(ONE, num_mels=40), r"chunk.sound.mel: expected shape \[2, 80\], got \[4, 40\]"),
        (replace(ONE, x_vector=b""), r"chunk.sound.x_vector: expected shape \[192\], got \[0\]"),
        (replace(ONE, x_vector=b"\xff" * 768), "chunk.sound.x_vector: expected finite numbers, got NaN or infinity"),
        (replace(ONE, tokens=b"\xff" * 4), r"chunk.sound.tokens: expected codes in \[0, 6561\), got \[-1, -1\]"),
        (replace(ONE, tokens=bytes(4 * LONG)), "chunk.sound.tokens: expected 1 to 250 codes, got 251 codes"),
    ],
)
def test_mismatched_voice_recordings_are_refused(codec: S3GenCodec, sound: Sound, message: str) -> None:
    table = SoundTable(codec, 1 << 20)
    with pytest.raises(InvalidRequest, match=message):
        table.acquire(sound)
    assert table.num_bytes == 0
    assert not codec.recorded.voices


def test_voice_recordings_are_allowed_only_in_the_first_chunk(codec: S3GenCodec, worker: DecoderWorker) -> None:
    replies = [RecordedReply() for _ in range(3)]
    worker.push("a", Chunk(0, Segment.AUDIO), None, replies[0])
    worker.push("a", Chunk(1, Segment.AUDIO, sound=ONE), None, replies[1])
    worker.push("b", Chunk(0, Segment.AUDIO, sound=ONE, voice=1), None, replies[2])
    assert replies[0].wait().error is None
    assert "chunk.sound: expected none after the first chunk, got one" in str(replies[1].wait().error)
    assert "chunk.voice: expected 0 with a recorded voice, got 1" in str(replies[2].wait().error)
