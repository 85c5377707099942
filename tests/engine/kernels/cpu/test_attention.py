"""Attention of a row has the same bits in any part of its prompt, in any batch, and with any number of threads."""

import itertools
import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder, _get_attn_isa
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from stretto import cpu_backend
from stretto.cpu_backend.attention import InvariantAttentionBackend, divide_requests, rows_of_a_pass
from tests.engine.attention_cache import SMALL, set_cache_size
from tests.tiers import by_night

pytestmark = pytest.mark.engine
BLOCK = 32
OTHER_ROWS = 45  # prompt of another request in the batch
# Prompts longer than the tiles of each cache. The largest cache of a processor's core has 2 MiB.
NIGHTLY_SIZES = (8 << 10, 200), (128 << 10, 300), (512 << 10, 700), (2 << 20, 2100)
SIZES = [(SMALL, 70), *by_night(*((size,) for size in NIGHTLY_SIZES))]
NIGHTLY_SHAPES = (16, 8, 128), (12, 4, 96), (16, 2, 64), (8, 8, 256), (6, 2, 64)
SHAPES = [(4, 4, 32), (14, 2, 64), (16, 8, 80), *by_night(*((shape,) for shape in NIGHTLY_SHAPES))]


class Case(NamedTuple):
    """Queries and the KV cache of a prompt."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    kernel: str


@pytest.fixture(params=[1, *by_night(2)], ids=lambda number: f"{number} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0] >> 10} KiB")
def num_rows(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the length of a prompt, longer than the tiles with the cache that is set."""
    num_bytes, rows = request.param
    before = set_cache_size(num_bytes)
    yield rows
    set_cache_size(before)


def make_case(shape: tuple[int, int, int], num_rows: int, dtype: torch.dtype) -> Case:
    num_heads, num_kv_heads, head_size = shape
    generator = torch.Generator().manual_seed(num_rows)
    num_blocks = -(-num_rows // BLOCK)
    kernel = _get_attn_isa(dtype, BLOCK, head_size)
    query = 2 * torch.randn(num_rows, num_heads, head_size, generator=generator)
    cache = torch.zeros(num_blocks, num_kv_heads, 2 * BLOCK, head_size, dtype=dtype)
    key, value = (torch.randn(num_rows, num_kv_heads, head_size, generator=generator).to(dtype) for _ in range(2))
    keys, values = cache.chunk(2, 2)
    ops.cpu_attn_reshape_and_cache(2 * key, value, keys, values, torch.arange(num_rows), kernel)
    return Case(num_heads, num_kv_heads, head_size, query.to(dtype), keys, values, kernel)


def attend(case: Case, spans: Sequence[tuple[int, int]], max_rows: int | None = None, window: int = -1) -> list[Any]:
    """Return the attention's output of spans of the prompt, which are requests of one step.

    Args:
        case: The prompt.
        spans: First row and last row + 1 of each request.
        max_rows: Largest number of rows of a divided request; None for undivided ones.
        window: Number of keys that a row sees; -1 for all.
    """
    starts = torch.tensor([0, *(end - first for first, end in spans)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    lengths = torch.tensor([end for _, end in spans], dtype=torch.int32)
    blocks = torch.arange(len(case.keys), dtype=torch.int32).expand(len(spans), -1).contiguous()
    num_rows = int(starts[-1])
    batch = CommonAttentionMetadata(
        query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=lengths, num_reqs=len(spans),
        num_actual_tokens=num_rows, max_query_len=int(starts.diff().max()), max_seq_len=int(lengths.max()),
        block_table_tensor=blocks, slot_mapping=torch.zeros(num_rows, dtype=torch.int64),
    )  # fmt: skip
    if max_rows is not None:
        batch = divide_requests(batch, max_rows)
    query = torch.cat([case.query[first:end] for first, end in spans])
    out = torch.empty_like(query)
    plan = ops.cpu_attn_get_scheduler_metadata(
        batch.num_reqs, case.num_heads, case.num_kv_heads, case.head_size, batch.seq_lens, query.dtype,
        batch.query_start_loc, True, window, case.kernel, False,
    )  # fmt: skip
    ops.cpu_attention_with_kv_cache(
        query, case.keys, case.values, out, batch.query_start_loc, batch.seq_lens, 1 / math.sqrt(case.head_size),
        True, None, window, batch.block_table_tensor, 0.0, plan, None,
    )  # fmt: skip
    return list(out.split([end - first for first, end in spans]))


def assert_same_rows(case: Case, max_rows: int, window: int = -1) -> torch.Tensor:
    """Assert that all ways to read the prompt give the rows that are read one by one; return them."""
    num_rows = len(case.query)
    single = torch.cat([attend(case, [(row, row + 1)], None, window)[0] for row in range(num_rows)])
    assert torch.equal(attend(case, [(0, num_rows)], max_rows, window)[0], single)
    for size in (2, 7, 16, BLOCK + 1, num_rows - 1):
        for offset in (0, 1, size - 1):  # a preempted reply begins a chunk at any row
            bounds = [0, *range(offset or size, num_rows, size), num_rows]
            spans = [span for span in itertools.pairwise(bounds) if span[0] < span[1]]
            parts = [attend(case, [span], max_rows, window)[0] for span in spans]
            assert torch.equal(torch.cat(parts), single), (size, offset)
    spans = [(0, OTHER_ROWS), (num_rows - 1, num_rows), (3, num_rows), (num_rows // 2, num_rows // 2 + 1), (1, 9)]
    for (first, end), rows in zip(spans, attend(case, spans, max_rows, window), strict=True):
        assert torch.equal(rows, single[first:end]), (first, end)
    return single


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_any_part_of_its_prompt(
    shape: tuple[int, int, int], num_rows: int, threads: int
) -> None:
    case = make_case(shape, num_rows, torch.float32)
    assert_same_rows(case, rows_of_a_pass(case.kernel, *shape[:2]))
    assert_same_rows(case, 1, window=num_rows - 9)


def test_undivided_prompts_have_other_bits_beyond_a_tile() -> None:
    """Otherwise the tests above could not fail."""
    before = set_cache_size(SMALL)
    case = make_case((4, 4, 32), 70, torch.float32)
    whole = attend(case, [(0, 70)])[0]
    single = torch.cat([attend(case, [(row, row + 1)])[0] for row in range(70)])
    set_cache_size(before)
    assert torch.equal(whole[:30], single[:30])
    assert not torch.equal(whole, single)


@pytest.mark.parametrize("shape", [(16, 8, 128), *by_night(((14, 2, 64),), ((4, 4, 32),))], ids=str)
def test_a_bfloat16_row_has_the_same_bits_in_any_part_of_its_prompt(
    shape: tuple[int, int, int], num_rows: int, threads: int
) -> None:
    torch.cpu._init_amx()
    case = make_case(shape, num_rows, torch.bfloat16)
    assert_same_rows(case, rows_of_a_pass(case.kernel, *shape[:2]))


@pytest.mark.parametrize(
    ("kernel", "num_heads", "num_kv_heads", "expected"),
    [
        ("vec", 8, 8, 8), ("vec", 16, 8, 4), ("vec", 14, 2, 8), ("vec", 16, 2, 1), ("vec", 32, 2, 8),
        ("vec16", 16, 8, 8), ("amx", 16, 8, 16), ("amx", 12, 4, 32), ("neon", 8, 8, 1), ("neon", 16, 4, 1),
    ],
)  # fmt: skip
def test_pass_has_as_many_rows_as_the_kernel_holds(
    kernel: str, num_heads: int, num_kv_heads: int, expected: int
) -> None:
    assert rows_of_a_pass(kernel, num_heads, num_kv_heads) == expected


def test_backend_replaces_vllms_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used by all layers: also of compiled models, and with adapters, tensor parallelism and KV transfer."""
    cpu_backend.install()
    backend: Any = AttentionBackendEnum.CPU_ATTN.get_class()
    assert backend is InvariantAttentionBackend
    built: list[CommonAttentionMetadata] = []
    monkeypatch.setattr(CPUAttentionMetadataBuilder, "build", lambda self, common, batch, fast: built.append(batch))
    builder = object.__new__(backend.get_builder_cls())
    for changed, num_reqs in (({}, 4), ({"is_cross_attention": True}, 2), ({"is_encoder_only_attention": True}, 2)):
        vars(builder).update({"max_rows": 4, "is_cross_attention": False, "is_encoder_only_attention": False} | changed)
        starts = torch.tensor([0, 1, 11], dtype=torch.int32)
        batch = CommonAttentionMetadata(
            query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=torch.tensor([7, 12], dtype=torch.int32),
            num_reqs=2, num_actual_tokens=11, max_query_len=10, max_seq_len=12,
            block_table_tensor=torch.tensor([[5], [8]], dtype=torch.int32), slot_mapping=torch.arange(11),
        )  # fmt: skip
        builder.build(0, batch)
        assert built[-1].num_reqs == num_reqs
    assert built[0].query_start_loc.tolist() == [0, 1, 5, 9, 11]
    assert built[0].seq_lens.tolist() == [7, 6, 10, 12]
    assert built[0].block_table_tensor.tolist() == [[5], [8], [8], [8]]
    assert built[0].slot_mapping.tolist() == list(range(11))


def test_layers_with_a_window_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = "stretto.cpu_backend.attention"
    for window, expected in ((-1, 8), (20, 1)):
        layer = SimpleNamespace(impl=SimpleNamespace(sliding_window=window))
        monkeypatch.setattr(f"{attention}.get_layers_from_vllm_config", lambda *_, layer=layer: {"layer": layer})

        def set_up(builder: Any, *_: object) -> None:
            vars(builder).update(vllm_config=None, layer_names=["layer"], isa="vec", num_heads=4, num_kv_heads=4)

        monkeypatch.setattr(CPUAttentionMetadataBuilder, "__init__", set_up)
        assert InvariantAttentionBackend.get_builder_cls()().max_rows == expected
