"""Windows of the sizes that a family's requests produce are captured and warmed up before the first request."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from lab.releases.every_codec import every_codec
from stretto.codecs.base import Codec, CodecSpec
from stretto.decoder.launching import Flight, HostLauncher, capture_shapes, warm_up
from stretto.decoder.windows import FrameWindow, Windower
from stretto.decoding.states import State
from stretto.entry_points import CODECS, find
from stretto.family.base import Family
from stretto.family.plugin import plugins
from stretto.streams.chunking import ChunkPolicy, Pacer
from tests.codecs.silent import SILENT

BUILT = [each.build(None) for each in plugins()]
# Families with an installed codec, one for each codec and chunk sizes.
FAMILIES = {
    f"{each.codec}-{each.first_chunk_frames}-{each.steady_chunk_frames}": each
    for each in BUILT
    if find(CODECS, each.codec) is not None
}
BY_NIGHT = pytest.mark.nightly
SPEEDS = (1.05, 2.0, 5.0, 30.0)  # frames generated per frame played
Shape = tuple[int, int, int]  # left, total number of frames, right


class Recording(HostLauncher):
    """Launcher that records the shapes of captures and decodes instead of capturing."""

    has_graphs = True

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec, "float32")
        self.captured, self.decoded = set[Shape](), set[Shape]()

    def capture(self, windows: Sequence[FrameWindow], is_first: bool = False) -> bool:
        self.captured.add(shape_of(windows[0]))
        return True

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
        self.decoded.add(shape_of(windows[0]))
        return super().launch(windows, states, is_first)


def shape_of(window: FrameWindow) -> Shape:
    return window.left, window.codes.shape[1], window.right


@functools.cache
def codec_of(name: str) -> Codec:
    return every_codec(name, is_narrow=True)


def served_shapes(family: Family, spec: CodecSpec) -> Iterator[Shape]:
    """Yield the shapes of all windows of long utterances except their last, on an idle server."""
    policy = ChunkPolicy(
        family.first_chunk_frames,
        family.steady_chunk_frames,
        frame_rate=spec.frame_rate,
        held_frames=spec.right_frames,
        blocks=spec.blocks,
    )
    for speed in SPEEDS:
        times = itertools.count(0.0, 1 / spec.frame_rate / speed)
        pacer = Pacer(policy, clock=lambda times=times: next(times))
        windower, num_ready = Windower(spec), 0
        num_frames = max(
            8 * family.steady_chunk_frames, 8 * spec.start_frames, sum(spec.blocks) + 2 * spec.start_frames
        )
        for _ in range(num_frames):
            num_ready += 1
            size = pacer.num_to_send(num_ready)
            num_ready -= size
            window = windower.push(np.zeros((spec.num_codebooks, size), np.int64), is_final=False) if size else None
            if window is not None:
                yield window.left, window.codes.shape[1], window.right


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, id=name, marks=BY_NIGHT if each.codec == "glm4_voice" else ())
        for name, each in FAMILIES.items()
        if each.codec not in SILENT
    ],
)
def test_served_shapes_are_captured_and_warmed_up(family: Family) -> None:
    codec = codec_of(family.codec)
    spec, policy = codec.spec, ChunkPolicy(family.first_chunk_frames, family.steady_chunk_frames)
    served = set(served_shapes(family, spec)) if spec.max_frames is None else set()
    first = {shape for shape in served if shape[0] == 0}
    assert bool(served) == (spec.max_frames is None)
    captured, warmed = Recording(codec), Recording(codec)
    captured.has_graphs = spec.can_capture
    capture_shapes(captured, codec, policy, max_batch=1)
    warm_up(captured if spec.blocks else warmed, codec, policy, max_batch=1, seconds=600.0)
    if not spec.can_capture:
        assert not captured.captured
    elif spec.blocks:  # later blocks have other shapes
        assert first <= captured.captured <= served
    else:
        assert served <= captured.captured
        assert served <= warmed.decoded


@pytest.mark.parametrize("sizes", [(2, 12), (1, 6), (8, 25), (1, 1)])
def test_policy_lists_the_sizes_that_it_uses(sizes: tuple[int, int]) -> None:
    policy = ChunkPolicy(*sizes)
    assert {policy.round_down(number) for number in range(1, 100)} == set(policy.sizes)
    assert set(policy.first_sizes) >= {sizes[0]}
    assert max(policy.first_sizes) <= policy.steady_frames
