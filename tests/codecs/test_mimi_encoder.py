"""Mimi's streaming encoder encodes parts of any length, batched or unbatched, like the complete recording."""

import numpy as np
import pytest
import torch

from plugins.kyutai.tests.kyutai_release import make_checkpoint, replies
from stretto.codecs.encoded_stream import EncodedStream, encode_ready
from stretto.codecs.mimi import MimiCodec, load
from stretto.codecs.mimi_encoder import MimiEncoder

FRAME = 1920


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> MimiCodec:
    return load(make_checkpoint(tmp_path_factory.mktemp("mimi")) / "codec")


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    """Return 42 frames of two steps each, which is more than four windows of the encoder's transformer."""
    return replies()["pcm"].astype(np.float32)


def in_parts(encoder: MimiEncoder, pcm: np.ndarray, sizes: list[int]) -> np.ndarray:
    stream, codes, at = EncodedStream(encoder), [], 0
    while at < len(pcm):
        size = sizes[len(codes) % len(sizes)]
        stream.push(pcm[at : at + size])
        encode_ready(encoder, [stream])
        codes.append(stream.pop_codes())
        at += size
    return np.concatenate(codes, 1)


@pytest.mark.parametrize("sizes", [[FRAME], [1, 5000, 3333], [7 * FRAME], [42 * FRAME]])
def test_encoding_does_not_depend_on_part_sizes(codec: MimiCodec, pcm: np.ndarray, sizes: list[int]) -> None:
    """The first 8 codebooks equal the authors' codes for the complete recording; all 32 equal transformers' codes."""
    codes = in_parts(MimiEncoder(codec), pcm, sizes)
    assert (codes[:8] == replies()["mimi_codes"]).all()
    assert (codes == codec.encode(pcm)).all()


def test_recordings_at_different_positions_encode_as_one_batch(codec: MimiCodec, pcm: np.ndarray) -> None:
    """Recordings at the start, within the first window and long after it do not affect each other."""
    encoder, random = MimiEncoder(codec), np.random.default_rng(0)
    recordings = [np.roll(pcm, 777 * each)[: (6 + 7 * each) * FRAME] for each in range(5)]
    streams = [EncodedStream(encoder) for _ in recordings]
    at = [0] * len(recordings)
    while any(begun < len(each) for begun, each in zip(at, recordings, strict=True)):
        for index in random.permutation(len(recordings))[:3].tolist():
            size = int(random.integers(1, 4 * FRAME))
            streams[index].push(recordings[index][at[index] : at[index] + size])
            at[index] += size
        encode_ready(encoder, streams, max_batch=4)
    for stream, recording in zip(streams, recordings, strict=True):
        assert (stream.pop_codes() == codec.encode(recording)).all()


def test_encoder_state_has_a_fixed_size(codec: MimiCodec, pcm: np.ndarray) -> None:
    """The state does not grow with the recording, and without it the codes differ."""
    encoder, stream = MimiEncoder(codec), EncodedStream(MimiEncoder(codec))
    stream.push(pcm)
    encode_ready(encoder, [stream])
    assert stream.state.shape == (1, encoder.state_size)
    assert stream.num_frames == 42
    state, first = encoder.initial_state(1), torch.tensor([0])
    second = torch.from_numpy(pcm[None, FRAME : 2 * FRAME])
    assert (encoder.encode(second, first, state)[0, :, 0].numpy() != stream.pop_codes()[:, 1]).any()


def test_last_frame_is_padded_with_silence(codec: MimiCodec, pcm: np.ndarray) -> None:
    padded = np.pad(pcm[:5000], (0, 3 * FRAME - 5000))
    assert (MimiEncoder(codec).encode_all(pcm[:5000]) == codec.encode(padded)).all()
    assert MimiEncoder(codec).encode_all(pcm[:0]).shape == (32, 0)
