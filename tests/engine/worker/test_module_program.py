"""Modules with persistent buffers: the rows that they read, their device, and the content of graphs."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport

from stretto.engine.worker.predictors import BurstBatch
from stretto.engine.worker.slots import DeviceArrays
from stretto.families.vita_audio.bursts import BurstSchedule, ModuleSchedules
from stretto.families.vita_audio.mechanism import module_rows
from stretto.families.vita_audio.mechanism.module_rows import (
    IS_KEPT,
    IS_READ,
    NOW,
    POSITION,
    ModuleAttention,
    ModuleProgram,
    RowSpans,
)
from tests.engine.devices import GPU, OneDevice
from tests.engine.worker.test_step_graphs import FakeRecorder

BURSTS = ModuleSchedules(3, (BurstSchedule("turbo", (1, 3)),))
SLOTS, WINDOW, WIDTH = 5, BURSTS.window, 8


class FakeAttention:
    """Attention that records its requests."""

    def __init__(self, max_captured_rows: int, device: torch.device):
        self.max_captured_rows, self.max_length, self.built = max_captured_rows, 160, list[tuple[list[int], int]]()
        self.gathered = list[int]()
        self.mapping = torch.zeros(1, SLOTS * WINDOW, dtype=torch.int64, device=device)

    def metadata(self, spans: RowSpans, begin: np.ndarray, lengths: np.ndarray, max_length: int) -> dict[str, Any]:
        assert len(spans.slots) == len(spans.lengths) == len(lengths) == len(begin) - 1 == len(spans.begin) - 1
        assert len(spans.positions) == begin[-1]
        self.built.append((lengths.tolist(), max_length))
        return {}

    def gather(self, slots: torch.Tensor) -> None:
        self.gathered.append(len(slots))

    def map(self, spans: RowSpans) -> torch.Tensor:
        return self.mapping[:, : len(spans.positions)].fill_(7)

    def reads(self, metadata: dict[str, Any], num_rows: int) -> AbstractContextManager[None]:
        return nullcontext()


class FakeModel:
    num_modules = BURSTS.num_modules

    def __init__(self, device: torch.device):
        self.rows_hidden = torch.arange(16.0, device=device)[:, None].expand(16, WIDTH).contiguous()

    def run_module(self, k: int, embeds: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return hidden + 100 * (k == 0)


def program(
    device: torch.device, max_captured_rows: int = 0, recorder: Any = None
) -> tuple[ModuleProgram, FakeAttention]:
    arrays = DeviceArrays(device)
    generated = SimpleNamespace(
        arrays=arrays, embed=lambda slots, at: torch.empty(len(slots), WIDTH, device=slots.device)
    )
    ring = torch.full((SLOTS, WINDOW, WIDTH), -1.0, device=device)
    attention = FakeAttention(max_captured_rows, device)
    return ModuleProgram(FakeModel(device), generated, ring, attention, recorder), attention


def step() -> tuple[BurstBatch, np.ndarray]:
    """Slot 3 has read 20 rows (2 in this step, 18 by modules). Slot 0 has read its first 2 in this step.
    Slot 4 has read 30 rows, 1 of them in this step; it does not use modules."""
    batch = SimpleNamespace(
        num_reqs=3,
        num_tokens=5,
        idx_mapping_np=np.array([3, 0, 4], np.int32),
        num_computed_tokens_np=np.array([18, 0, 29], np.int32),
        query_start_loc_np=np.array([0, 2, 4, 5], np.int32),
    )
    num_read = np.array([20, 2, 30])
    return BurstBatch(batch, num_read, np.array([3, 3, 0]), np.array([True, True, False])), np.array([17, 0, 30])


def test_mtp_modules_take_the_last_rows_and_write_only_unread_ones() -> None:
    modules, attention = program(torch.device("cpu"))
    modules.prepare(*step())
    rows = modules._rows[:, : 4 * WINDOW].view(-1, 4, WINDOW)
    assert rows[POSITION].tolist() == [[16, 17, 18, 19], [0, 1, 2, 3], [26, 27, 28, 29], [0, 0, 0, 0]]
    assert rows[IS_KEPT].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert rows[IS_READ].tolist() == [[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rows[NOW, 0, 2:].tolist() + rows[NOW, 1, :2].tolist() + [int(rows[NOW, 2, 3])] == [0, 1, 2, 3, 4]
    assert attention.built == [([20, 4, 30, 4], 160)]
    assert modules.run(0, 3)[:, 0].tolist() == [101, 103, 104]
    assert modules.run(1, 3)[:, 0].tolist() == [101, 103, 104]
    written = attention.mapping[0, : 4 * WINDOW].view(4, WINDOW)
    assert (written == torch.where(rows[IS_READ] == 1, 7, -1)).all()


def test_mtp_module_program_uses_a_single_device() -> None:
    modules, _ = program(GPU)
    with OneDevice():
        modules.prepare(*step())
        assert all(modules.run(k, 3).device == GPU for k in range(BURSTS.num_modules))


def test_captured_module_batches_are_replayed_from_the_start() -> None:
    """Batches have 5, 4, 2 and 1 requests; five have more rows than attention permits in a graph."""
    recorder = FakeRecorder()
    modules, attention = program(torch.device("cpu"), 4 * WINDOW, recorder)
    modules.capture()
    assert [lengths for lengths, _ in attention.built] == [[WINDOW] * size for size in (5, 4, 2, 1)]
    assert (attention.mapping == -1).all(), "a row was written"
    assert len(recorder.recordings) == 3 * BURSTS.num_modules
    assert not attention.gathered, "a graph would read the numbers of blocks of an earlier step"
    modules.prepare(*step())
    assert attention.gathered == [4]
    assert [modules.run(k, 3)[0, 0].item() for k in range(BURSTS.num_modules)] == [101] * 3
    assert sum(recording.num_replays for recording in recorder.recordings) == 3


@pytest.mark.parametrize(
    ("support", "mode", "max_rows"),
    [
        (AttentionCGSupport.ALWAYS, CUDAGraphMode.FULL_AND_PIECEWISE, 512),
        (AttentionCGSupport.UNIFORM_BATCH, CUDAGraphMode.FULL_DECODE_ONLY, 512),
        (AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE, CUDAGraphMode.FULL_AND_PIECEWISE, 0),
        (AttentionCGSupport.ALWAYS, CUDAGraphMode.PIECEWISE, 0),
        (AttentionCGSupport.ALWAYS, CUDAGraphMode.NONE, 0),
    ],
)
def test_max_captured_rows_follow_attention_graph_support(
    support: AttentionCGSupport, mode: CUDAGraphMode, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [], SimpleNamespace(min_cg_support=support), []
    monkeypatch.setattr(module_rows, "init_attn_backend", lambda *args, **options: found)
    compilation = SimpleNamespace(cudagraph_mode=mode, max_cudagraph_capture_size=512)
    tables = SimpleNamespace(slot_mappings=torch.zeros(1, 8, dtype=torch.int64))
    config = SimpleNamespace(compilation_config=compilation, model_config=SimpleNamespace(max_model_len=160))
    attention = ModuleAttention(config, SimpleNamespace(), tables, {"layer"}, 64)
    assert attention.max_captured_rows == max_rows
