import numpy as np
import pytest
import torch

from python_backend.decoder.batching import Job, decode_group, group_by_shape
from python_backend.decoder.mailbox import Delivery
from python_backend.decoder.rendering import Renderer
from python_backend.decoder.sessions import Session
from python_backend.decoder.streaming import Windower
from python_backend.streams.chunk import Chunk
from python_backend.streams.delivery import OutputForm
from python_backend.streams.segment import Segment
from tests.fakes import FakeCodec, RecordedReply


def make_job(name: str, pushes: list[int], codec: FakeCodec) -> Job:
    """The job of the last of several pushes, each of so many frames."""
    session = Session(Windower(codec.spec), codec.initial_state(1), Renderer(OutputForm(), codec.spec), 0.0)
    window = None
    for size in pushes:
        window = session.windower.push(np.full((2, size), len(name)), False)
    assert window is not None
    return Job(Delivery(name, Chunk(0, Segment.AUDIO), None, RecordedReply()), session, window)


def test_equal_shapes_go_together_and_the_starts_go_first() -> None:
    codec = FakeCodec()
    pushes = {"a": [4, 4], "b": [4], "c": [4, 4], "d": [3], "e": [4]}
    groups = group_by_shape([make_job(name, sizes, codec) for name, sizes in pushes.items()])
    assert [[job.delivery.utterance for job in group] for group in groups] == [["b", "e"], ["d"], ["a", "c"]]


def test_each_session_gets_its_own_state_back() -> None:
    codec = FakeCodec()
    group = [make_job("x", [4], codec), make_job("xyz", [4], codec)]
    pcm = decode_group(codec, group)
    assert pcm.shape == (2, 12)
    assert [job.session.state.tolist() for job in group] == [[[3.0]], [[9.0]]]


def test_a_codec_that_gives_the_wrong_number_of_samples_is_caught() -> None:
    codec = FakeCodec()
    codec.decode = lambda window: (torch.zeros(1, 5), window.state)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"pcm \(1, 5\) instead of \(1, 12\)"):
        decode_group(codec, [make_job("x", [4], codec)])
