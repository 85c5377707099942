"""The decoder's memory on a GPU: activations, graphs and states of every codec, by shapes on torch's device `meta`."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.decoder_memory import CHUNKS, memory_of, table
from stretto.codecs.base import CodecSpec, Stateful, Window
from stretto.config import DecoderConfig
from stretto.decoder.memory import META, Peak, measure
from stretto.decoding.graphs import MAX_BATCH_S
from stretto.entry_points import CODECS, names
from stretto.errors import CheckpointError
from stretto.family.plugin import decoder_size, plugins
from stretto.machine.sizing import SERVER_BYTES, Needs
from stretto.streams.layout import Segment
from tests.codecs.silent import SILENT
from tests.test_docs import ROOT
from tests.tiers import by_night

GIB = 1 << 30


def test_peak_counts_tensors_that_exist_together() -> None:
    with Peak() as peak:
        first = torch.empty(1000, device=META)
        second = first + 1
        del first
        third = second * 2
        third += 1
        assert third.view(10, 100)[0].shape == (100,)
    assert peak.num_bytes == 2 * 4000


class Doubling(nn.Module):
    """Codec with a state of 8 bytes, whose activations are twice its samples."""

    spec = CodecSpec("doubling", 100, 4, num_codebooks=2, codebook_size=8, streaming=Stateful())

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(250))

    def initial_state(self, batch: int) -> torch.Tensor:
        return self.weight.new_zeros(batch, 2)

    def decode(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        codes = window.codes[:, 0].repeat_interleave(4, 1).float()
        return codes + 1, window.state


def test_memory_is_the_sum_of_its_parts() -> None:
    config = DecoderConfig(device="cuda", max_batch=64, max_utterances=10, first_frames=2, steady_frames=8)
    found = measure(Doubling(), config)
    assert (found.weights, found.utterance, found.static, found.utterances) == (1000, 8, (2 + 2 * 64 + 16) * 8, 80)
    samples = 32 * 8 * 4  # of the longest chunk, in a batch of at most MAX_BATCH_S
    assert samples <= MAX_BATCH_S * Doubling.spec.sample_rate < 2 * samples
    assert 2 * 4 * samples <= found.peak <= 6 * 4 * samples
    rest = found.weights + found.static + found.utterances + found.references
    assert found.total > rest + 2 * found.peak
    assert measure(Doubling(), replace(config, graphs=False)).static == 0


def test_codec_that_waits_for_values_cannot_be_measured() -> None:
    class Other(Doubling):
        def decode(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
            return window.codes.float() + float(window.state.sum()), window.state

    with pytest.raises(CheckpointError, match="doubling: cannot be measured"):
        measure(Other(), DecoderConfig())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["espnet_dac", *by_night(*sorted(CHUNKS.keys() - {"espnet_dac"}))])
def test_decoder_fits_beside_a_language_model(name: str) -> None:
    """Two thirds of the smallest GPU are enough for most codecs of published size, with 320 utterances open."""
    memory = memory_of(name)
    assert decoder_size(name).gpu_gb == round(memory.total / 1e9, 2)
    needs = Needs(memory.total, None, weights=4 * 10**9, tables=0, cache=GIB)
    for gib in (48, 80) if decoder_size(name).state_bytes else (24, 48, 80):
        needs.check(gib * GIB)
    assert memory.total < (32 if decoder_size(name).state_bytes else 16) * GIB
    with pytest.raises(CheckpointError, match="expected a GPU with at least"):
        needs.check(needs.total - 1)
    assert needs.reserved == memory.total + SERVER_BYTES
    row = table({name: memory}).splitlines()[-1]
    assert row in (ROOT / "docs/gpu_sizes.md").read_text().splitlines(), (
        "python -m benchmarks.decoder_memory prints the table"
    )


def test_every_codec_has_chunk_sizes() -> None:
    assert set(names(CODECS).split(", ")) - SILENT == set(CHUNKS)


def test_chunk_sizes_are_those_of_a_family_with_audio() -> None:
    sizes = defaultdict[str, set[tuple[int, int]]](set)
    for family in (plugin.build(None) for plugin in plugins()):
        if any(Segment.AUDIO in task.segments for task in family.tasks):
            sizes[family.codec].add((family.first_chunk_frames, family.steady_chunk_frames))
    assert {"qwen3_12hz", "mimi", "espnet_dac"} <= sizes.keys()
    assert [codec for codec in sizes.keys() & CHUNKS if CHUNKS[codec] not in sizes[codec]] == []
