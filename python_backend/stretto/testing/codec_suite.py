"""Tests that every codec should pass, as a base class for pytest.

    class TestMyCodec(CodecSuite):
        case = CodecCase(name="brook", write=write_checkpoint, …)

The subclass inherits the tests, except those for parts that the case leaves out. Its own tests can use the fixtures,
too: `codec` is the codec of a small checkpoint in float32, `exact` the same in float64, which tests do not change, and
`copied` the folder of a checkpoint for edits. Longer variants of tests have the marker `nightly`.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stretto.codecs import memory
from stretto.codecs.base import Blocks, Codec, Stateful, Whole, Window, Windowed, load_codec
from stretto.codecs.encoded_stream import EncodedStream, FrameEncoder, encode_ready
from stretto.errors import CheckpointError, InvalidRequest
from stretto.streams.layout import latents_of
from stretto.testing.case_suite import by_night, leave_out_absent, parametrize
from stretto.testing.codec_streams import (
    affected,
    check_chunks,
    check_positions,
    chunks_of,
    largest,
    random_codes,
    random_pcm,
    stream,
)
from stretto.testing.fake_gpu import DEVICE, Copies, Launches, crossings, kernels_on_host, send_to_device
from stretto.testing.releases import Edit, edited, set_fields
from stretto.testing.rounding import is_same
from stretto.testing.suite import SPREAD_BY_DAY, one_of_each_layer, spread

FEW = 45  # frames, of an utterance that is decoded frame by frame
NUM_PARTS = 8  # of the state that are erased one by one
SPREAD_BY_NIGHT = 30


@dataclass(frozen=True)
class PublishedCodec:
    """Sizes of a published codec, made on the device `meta`.

    Attributes:
        state_size: Number of elements in the state of an utterance.
        shapes: Function that returns the shapes of its tensors by name, as the authors' classes have them.
    """

    make: Callable[[], Any]
    state_size: int
    num_parameters: int
    shapes: Callable[[], Mapping[str, Sequence[int]]] | None = None


@dataclass(frozen=True)
class OnGpu:
    """Small codec whose kernels run in Triton's interpreter, and the launches that are expected.

    Attributes:
        launches: Number of launches of each of our operators while a window of two frames is decoded.
        num_others: Number of other operators.
    """

    make: Callable[[], Any]
    launches: Mapping[str, int]
    num_others: int


@dataclass(frozen=True)
class CodecCase:
    """Data of a codec that its tests depend on.

    Attributes:
        write: Function that writes a small random checkpoint into a folder, and returns the folder for `load_codec`.
        spec: Expected constants of the codec, by attribute of `CodecSpec`.
        prepare: Function that returns a codec that is ready to decode, such as one with a voice, for a loaded one.
        draw: Function that returns codes [B, K, T] for a codec, B, T and a seed.
        decoded: Function that returns the samples [B, n] of codes [B, K, T] in one decode, by the authors' code or a
            slow reference, given the codec whose weights and dtype it uses. None compares with the codec itself.
        encoded: Function that returns the codes [K, T], or latents [D, T], of a recording in the same way.
        pads_recordings: True if the last frame of a recording is filled with silence.
        num_frames: Number of frames of most utterances; more than the attention windows.
        positions: Frames at which utterances continue in one batch.
        tolerance, float32_tolerance: Largest difference of a sample in float64, and in float32.
        latent_tolerance: Largest difference of a latent of a recording.
        weights, config: Paths in the folder of the tensors, and of the config or another needed file.
        unneeded_tensors: Stored names of tensors that a checkpoint may lack or whose shape is free.
        prefix: Beginning of the stored names of its tensors.
        name_if_missing: Function that returns the name of a tensor in errors.
        refused_configs: Changes of the config, by dotted paths, and a part of the error.
        refused_edits: File in the folder, edit of its content, and a part of the error.
        stream_encoder: Function that returns an encoder of parts of recordings for a codec.
    """

    name: str
    write: Callable[[Path], Path]
    spec: Mapping[str, object]
    prepare: Callable[[Any], Any] = lambda codec: codec
    draw: Callable[[Any, int, int, int], Tensor] = random_codes
    decoded: Callable[[Any, Tensor], Tensor] | None = None
    encoded: Callable[[Any, np.ndarray], Any] | None = None
    can_encode: bool = True
    pads_recordings: bool = True
    num_frames: int = 40
    positions: Sequence[int] = (5, 25)
    tolerance: float = 1e-12
    float32_tolerance: float = 1e-5
    latent_tolerance: float = 1e-5
    weights: str = "model.safetensors"
    config: str = "config.json"
    unneeded_tensors: Collection[str] = ()
    prefix: str = ""
    name_if_missing: Callable[[str], str] = str
    refused_configs: Sequence[tuple[Mapping[str, object], str]] = ()
    refused_edits: Sequence[tuple[str, Edit, str]] = ()
    published: PublishedCodec | None = None
    on_gpu: OnGpu | None = None
    stream_encoder: Callable[[Any], FrameEncoder] | None = None


def parts_of(case: CodecCase) -> dict[str, Sequence[Any]]:
    """Return the values of each test argument, by its name. Tests of parts that the case lacks have no values."""
    return {
        "total": [case.num_frames, 3, *by_night(1, 2, 9)],
        "is_float32": [False, *by_night(True)],
        "recorded_frames": [0.3, 4.7, *by_night(1.0, 2.001, 31.0)] if case.can_encode else [],
        "refused_recording": [] if case.can_encode else [np.zeros(100, np.float32)],
        "refused_config": [pytest.param(entry, id=entry[-1]) for entry in case.refused_configs],
        "refused_edit": [pytest.param(entry, id=f"{entry[0]}: {entry[-1]}") for entry in case.refused_edits],
        "num_tensors": [SPREAD_BY_DAY, *by_night(SPREAD_BY_NIGHT)],
        "published": [case.published] if case.published else [],
        "on_gpu": [case.on_gpu] if case.on_gpu else [],
        "stream_encoder": [case.stream_encoder] if case.stream_encoder else [],
    }


class CodecSuite:
    """Base class of a codec's tests; the module docstring describes it."""

    case: ClassVar[CodecCase]

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Folder of a small checkpoint, which tests do not change."""
        return cls.case.write(tmp_path_factory.mktemp(cls.case.name))

    @pytest.fixture(scope="class")
    @classmethod
    def codec(cls, folder: Path) -> Any:
        """The codec in float32."""
        return cls.case.prepare(load_codec(cls.case.name, folder))

    @pytest.fixture(scope="class")
    @classmethod
    def exact(cls, folder: Path) -> Any:
        """The codec in float64."""
        codec: Any = load_codec(cls.case.name, folder)
        return cls.case.prepare(codec.double())

    @pytest.fixture
    def copied(self, folder: Path, tmp_path: Path) -> Path:
        """A copy of the checkpoint's folder, for edits by `edited`."""
        return Path(shutil.copytree(folder, tmp_path / "copied", copy_function=os.link))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "case"):
            leave_out_absent(cls, parts_of(cls.case))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        parametrize(metafunc, parts_of(self.case))

    def assert_refused(self, folder: Path, *messages: str) -> None:
        """Assert that a checkpoint is refused with all messages."""
        with pytest.raises(CheckpointError) as refusal:
            load_codec(self.case.name, folder)
        for message in messages:
            assert message in str(refusal.value), f"expected {message!r} in the error, got {refusal.value}"

    def test_constants_are_those_of_the_checkpoint(self, codec: Codec) -> None:
        assert {name: getattr(codec.spec, name) for name in self.case.spec} == self.case.spec
        assert codec.spec.name == self.case.name

    def test_samples_of_any_chunks_equal_one_decode(
        self, codec: Codec, exact: Codec, total: int, is_float32: bool
    ) -> None:
        if is_float32:
            exact = codec
        codes = self.case.draw(exact, 2, total, total)
        whole = (self.case.decoded or (lambda codec, codes: stream(codec, codes, [total])))(exact, codes)
        assert whole.shape == (2, exact.spec.num_samples(total, 0))
        assert total < self.case.num_frames or 1e-3 < whole.abs().mean() < 0.9, "it is heard, and hardly clipped"
        ragged = [4, 8, *[total // 2] * 3]
        steady = chunks_of(1 if total <= FEW else 25, total)
        tolerance = self.case.float32_tolerance if is_float32 else self.case.tolerance
        others = [chunks_of(2, total), chunks_of(5, total)] if is_float32 else []
        check_chunks(exact, codes, whole, tolerance, [total], steady, ragged, *others)

    def test_samples_are_the_same_alone_and_in_a_batch(self, exact: Codec) -> None:
        codes = self.case.draw(exact, 2, 20, 1)
        together = stream(exact, codes, chunks_of(8, 20))
        for row in range(2):
            alone = stream(exact, codes[row : row + 1], chunks_of(8, 20))
            assert largest(alone[0] - together[row]) <= self.case.tolerance
        assert largest(together[0] - together[1]) > 1e-3

    def test_utterances_at_different_frames_decode_in_one_batch(self, exact: Codec) -> None:
        if isinstance(exact.spec.streaming, Blocks | Whole):
            pytest.skip("such windows are not decoded in one batch")
        codes = self.case.draw(exact, len(self.case.positions), self.case.num_frames, 2)
        whole = stream(exact, codes, [self.case.num_frames])
        check_positions(exact, codes, whole, self.case.tolerance, self.case.positions)

    def test_samples_depend_on_the_frames_of_the_context(self, exact: Codec) -> None:
        streaming = exact.spec.streaming
        if isinstance(streaming, Blocks | Whole):
            pytest.skip("its frames depend on whole blocks")
        frame = self.case.num_frames // 2
        frames = affected(exact, self.case.draw(exact, 1, self.case.num_frames, 3), frame).nonzero().flatten()
        assert frame - exact.spec.right_frames <= frames[0]
        if isinstance(streaming, Windowed):
            assert frames.tolist() == list(range(frame - streaming.right, frame + streaming.left + 1))
        elif not streaming.left:  # otherwise `right` is rounded up
            assert frames[0] == frame - exact.spec.right_frames

    def test_decoding_writes_every_part_of_the_next_state_and_no_other(self, exact: Codec) -> None:
        """Without a part of the state, the next samples differ."""
        spec = exact.spec
        begun = exact.initial_state(1)
        if not isinstance(spec.streaming, Stateful):
            assert isinstance(spec.streaming, Blocks | Whole) or begun.shape == (1, 0)
            pytest.skip("it has no state, or that of its voice")
        total = self.case.num_frames
        first = total - 4
        codes = self.case.draw(exact, 1, total + spec.right_frames, 4)
        before = begun.clone()
        window = Window(codes[:, :, : first + spec.right_frames], 0, spec.right_frames, torch.tensor([0]), begun)
        _, state = exact.decode(window)
        assert torch.equal(begun, before)
        assert state.shape == begun.shape
        window = Window(
            codes[:, :, first - spec.left_frames :], spec.left_frames, spec.right_frames, torch.tensor([first]), state
        )
        expected, _ = exact.decode(window)
        for erased in torch.arange(state.shape[1]).tensor_split(NUM_PARTS):
            poorer = state.clone()
            poorer[:, erased] = begun[:, erased]
            pcm, _ = exact.decode(replace(window, state=poorer))
            assert largest(pcm - expected) > 1e-7, f"elements from {erased[0]} to {erased[-1]}"

    def test_recordings_of_any_length_are_encoded(
        self, codec: Any, exact: Any, recorded_frames: float, is_float32: bool
    ) -> None:
        used = codec if is_float32 else exact
        spec = used.spec
        rate = (spec.input_rate or spec.sample_rate) / spec.sample_rate
        pcm = random_pcm(round(recorded_frames * spec.samples_per_frame * rate))
        codes = used.encode(pcm)
        if self.case.pads_recordings:
            assert codes.shape == (spec.num_codebooks, -(-len(pcm) // round(spec.samples_per_frame * rate)))
        assert codes.dtype == np.int64 or spec.are_latents
        if spec.are_latents:
            latents = latents_of(codes)
            expected = latents if self.case.encoded is None else self.case.encoded(used, pcm)
            assert np.abs(latents - expected).max(initial=0) <= self.case.latent_tolerance
        elif self.case.encoded is not None:
            assert np.array_equal(codes, self.case.encoded(used, pcm))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "ENCODED_FRAMES", 2)
            in_parts = used.encode(pcm)
        if spec.are_latents:
            assert np.abs(latents_of(in_parts) - latents).max(initial=0) <= self.case.latent_tolerance
        else:
            assert np.array_equal(in_parts, codes)
            assert used.encode(pcm[:0]).shape == (spec.num_codebooks, 0)

    def test_recordings_are_refused(self, codec: Codec, refused_recording: np.ndarray) -> None:
        with pytest.raises(InvalidRequest, match=f"^audio: expected no audio.*{self.case.name} can only decode"):
            codec.encode(refused_recording)

    def test_fewer_codebooks_are_the_first_ones(self, folder: Path, codec: Codec) -> None:
        whole = codec.spec
        loaded = [load_codec(self.case.name, folder, num_codebooks=whole.num_codebooks)]
        assert loaded[0].spec.num_codebooks == whole.num_codebooks
        spoken = whole.num_codebooks if whole.are_latents else min(2, whole.num_codebooks)
        fewer = self.case.prepare(load_codec(self.case.name, folder, num_codebooks=spoken))
        assert fewer.spec.num_codebooks == spoken
        codes = self.case.draw(fewer, 1, 12, 5)
        expected = (self.case.decoded or (lambda codec, codes: stream(codec, codes, [12])))(fewer, codes)
        assert largest(stream(fewer, codes, chunks_of(5, 12)) - expected) <= max(4e-4, self.case.float32_tolerance)
        if self.case.can_encode:
            pcm = random_pcm(2 * whole.samples_per_frame)
            assert np.array_equal(fewer.encode(pcm), codec.encode(pcm)[:spoken])
        unit = "numbers in latents" if whole.are_latents else "codebooks"
        for wrong in (whole.num_codebooks + 1, 0):
            with pytest.raises(CheckpointError, match=f"expected .*{whole.num_codebooks} {unit} of .*, got {wrong}"):
                load_codec(self.case.name, folder, num_codebooks=wrong)

    def test_unknown_missing_and_misshaped_tensors_are_refused(self, copied: Path, num_tensors: int) -> None:
        path = copied / self.case.weights
        with edited(path) as tensors:
            stored = dict(tensors)
            tensors[f"{self.case.prefix}extra.weight"] = torch.zeros(1)
        self.assert_refused(copied, "unknown: extra.weight")
        names = [name for name in stored if name not in self.case.unneeded_tensors]
        for name in spread(one_of_each_layer(names), num_tensors):
            with edited(path) as tensors:
                tensors.clear()
                tensors.update({other: tensor for other, tensor in stored.items() if other != name})
            self.assert_refused(copied, self.case.name_if_missing(name))
            with edited(path) as tensors:
                tensors[name] = torch.zeros(*stored[name].shape, 2)
            self.assert_refused(copied, self.case.name_if_missing(name))

    def test_missing_and_unreadable_files_are_refused(self, copied: Path) -> None:
        for file in (self.case.config, self.case.weights):
            path = copied / file
            content = path.read_bytes()
            path.unlink()
            self.assert_refused(copied, str(copied))
            path.write_bytes(b"{")
            self.assert_refused(copied, str(copied))
            path.write_bytes(content)

    def test_other_configs_are_refused(self, copied: Path, refused_config: tuple[Mapping[str, object], str]) -> None:
        changes, message = refused_config
        with edited(copied / self.case.config) as record:
            set_fields(record, changes)
        self.assert_refused(copied, message)

    def test_other_files_are_refused(self, copied: Path, refused_edit: tuple[str, Edit, str]) -> None:
        file, edit, message = refused_edit
        with edited(copied / file) as content:
            edit(content)
        self.assert_refused(copied, message)

    def test_published_sizes(self, published: PublishedCodec) -> None:
        with torch.device("meta"):
            codec = published.make()
            assert codec.initial_state(1).shape == (1, published.state_size)
        assert sum(parameter.numel() for parameter in codec.parameters()) == published.num_parameters
        if published.shapes is not None:
            shapes = {name: tuple(shape) for name, shape in published.shapes().items()}
            assert {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()} == shapes

    def test_decode_does_not_wait_for_the_device(self, folder: Path) -> None:
        """A CUDA graph can contain a decode, or the host waits once for the next states of the whole batch."""
        codec = load_codec(self.case.name, folder)
        assert isinstance(codec, nn.Module)
        spec = codec.spec
        send_to_device(codec)
        on_host = spec.reads_on_host
        assert not (on_host and spec.can_capture)
        where = torch.device("cpu") if on_host else DEVICE
        right = spec.right_frames
        left = 0 if on_host else spec.left_frames
        frames = 4
        if spec.blocks:
            frames = spec.blocks[0] - right if on_host else spec.blocks[-1]
        codes = torch.zeros(3, spec.num_codebooks, left + frames + right, dtype=torch.int64, device=where)
        first = torch.full((3,), left, device=where)
        window = Window(codes, left, right, first, codec.initial_state(3))
        with torch.inference_mode(), Copies() if on_host else crossings() as recorded:
            pcm, states = codec.decode(window)
        assert pcm.shape == (3, spec.num_samples(frames, right))
        assert states.device == window.state.device
        if isinstance(recorded, Copies):
            assert recorded.num <= 1
        else:
            assert recorded == []
            assert pcm.device == DEVICE

    def test_samples_of_kernels_have_the_same_bits_in_any_chunk_and_batch(self, on_gpu: OnGpu) -> None:
        """Not those of torch, which rounds differently. The second run reads the state that the first one wrote."""
        codec = on_gpu.make()
        expected = stream(codec, self.case.draw(codec, 2, 4, 1), [4])
        codec = on_gpu.make()
        codes = self.case.draw(codec, 2, 4, 1)
        right = codec.spec.right_frames
        begun = codec.initial_state(1)
        table = torch.randn(6, begun.shape[1], generator=torch.Generator().manual_seed(2))
        table[0] = begun[0]
        untouched = table[[0, 5]].clone()
        parts = []
        with kernels_on_host():
            whole = stream(codec, codes, [4])
            assert is_same(stream(codec, codes[1:], [1 + right, 2, 1]), whole[1:])
            for begin, end, rows in [(0, 1, [[0, 0], [4, 2]]), (1, 4, [[4, 2], [1, 3]])]:
                following = right if end < 4 else 0
                window = Window(
                    codes[:, :, begin : end + following],
                    0,
                    following,
                    torch.full((2,), begin),
                    table,
                    torch.tensor(rows),
                )
                pcm, after = codec.decode(window)
                assert after is table
                parts.append(pcm)
        assert largest(whole - expected) <= 1e-5
        assert whole.abs().median() < 0.9
        assert is_same(torch.cat(parts, 1), whole)
        assert torch.equal(table[[0, 5]], untouched)

    def test_number_of_launches(self, on_gpu: OnGpu) -> None:
        codec = on_gpu.make().to("meta")
        with torch.device("meta"):
            codes = torch.zeros(1, codec.spec.num_codebooks, 2, dtype=torch.int64)
            window = Window(codes, 0, 0, torch.zeros(1), codec.initial_state(1))
            codec.decode(window)
            with Launches() as launches:
                codec.decode(window)
        counts = Counter(launches.names)
        assert {name: counts[name] for name in on_gpu.launches} == on_gpu.launches
        assert counts.total() - sum(on_gpu.launches.values()) == on_gpu.num_others, counts

    def test_recordings_encoded_in_parts_have_the_same_codes(
        self, codec: Codec, stream_encoder: Callable[[Any], FrameEncoder]
    ) -> None:
        """Recordings at the start, within the first window and long after it do not affect each other."""
        encoder = stream_encoder(codec)
        hop = encoder.samples_per_frame
        random = np.random.default_rng(0)
        recordings = [random_pcm((6 + 9 * number) * hop) for number in range(5)]
        streams = [EncodedStream(encoder) for _ in recordings]
        positions = [0] * len(recordings)
        while any(position < len(pcm) for position, pcm in zip(positions, recordings, strict=True)):
            for index in random.permutation(len(recordings))[:3].tolist():
                size = int(random.integers(1, 4 * hop))
                streams[index].push(recordings[index][positions[index] : positions[index] + size])
                positions[index] += size
            encode_ready(encoder, streams, max_batch=4)
        for recording, encoded in zip(recordings, streams, strict=True):
            assert encoded.state.shape == encoder.initial_state(1).shape
            assert np.array_equal(encoded.pop_codes(), codec.encode(recording))
