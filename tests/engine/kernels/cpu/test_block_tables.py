"""vLLM's BlockTables, run with the CPU twins and with the interpreted kernels in parallel."""

import copy

import pytest
import torch
from vllm.triton_utils import dispatcher
from vllm.v1.worker.gpu import block_table, buffer_utils

from stretto import cpu_backend as cpu_kernels

MAX_REQS, MAX_TOKENS = 6, 64
GROUPS = [([16], [5]), ([4, 32], [9, 3])]
HOLDERS = {
    buffer_utils: ("_apply_write_kernel",),
    block_table: ("_gather_block_tables_kernel", "_compute_slot_mappings_kernel"),
}


def interpreted(monkeypatch):
    """Restore the interpreted kernels in vLLM's modules."""
    for module, names in HOLDERS.items():
        for name in names:
            monkeypatch.setattr(module, name, dispatcher._registry[f"{module.__name__}.{name}"][0])


def run(block_sizes, widths, enabled):
    """Fill, extend and overwrite rows, then read a batch of four rows, one of them a dummy."""
    tables = block_table.BlockTables(
        block_sizes, MAX_REQS, MAX_TOKENS, widths, torch.device("cpu"), slot_mapping_enabled=enabled
    )
    random = torch.Generator().manual_seed(3)
    for slot in range(MAX_REQS):
        blocks = [torch.randint(1, 99, (width - slot % 2,), generator=random).tolist() for width in widths]
        tables.append_block_ids(slot, tuple(blocks), overwrite=True)
    tables.apply_staged_writes()
    tables.append_block_ids(3, tuple([7] for _ in widths), overwrite=False)
    tables.append_block_ids(2, tuple([8, 9] for _ in widths), overwrite=True)
    tables.append_block_ids(5, tuple([] for _ in widths), overwrite=False)
    tables.apply_staged_writes()
    batch = torch.tensor([3, 2, 5])
    gathered = [table.clone() for table in tables.gather_block_tables(batch, num_reqs_padded=5)]
    starts = torch.tensor([0, 1, 20, 22, 25, 25, 25], dtype=torch.int32)
    positions = torch.cat([torch.tensor([30]), torch.arange(19), torch.tensor([8, 9, 0, 0, 0])])
    slots = tables.compute_slot_mappings(torch.tensor([3, 2, 5, -1]), starts, positions, MAX_TOKENS)
    used = [tables.num_blocks.np[group, batch].copy() for group in range(len(widths))]
    return [table.gpu.clone() for table in tables.block_tables], gathered, used, copy.deepcopy(slots)


@pytest.mark.parametrize(("block_sizes", "widths"), GROUPS)
@pytest.mark.parametrize("all_enabled", [True, False])
def test_cpu_block_tables_match_the_interpreted_kernels(monkeypatch, block_sizes, widths, all_enabled):
    cpu_kernels.install()
    enabled = [all_enabled or group > 0 for group in range(len(widths))]
    rows, gathered, used, slots = run(block_sizes, widths, enabled)
    with monkeypatch.context() as patch:
        interpreted(patch)
        expected_rows, expected_gathered, expected_used, expected_slots = run(block_sizes, widths, enabled)
    for group in range(len(widths)):
        assert torch.equal(rows[group], expected_rows[group])
        assert used[group].tolist() == expected_used[group].tolist()
        for row, length in enumerate(used[group]):
            assert torch.equal(gathered[group][row, :length], expected_gathered[group][row, :length])
        assert not gathered[group][3:].any()
    assert torch.equal(slots, expected_slots)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_staged_writes_to_flat_and_wide_tensors_match_the_kernel(same_as_kernel, dtype):
    starts, indices = torch.tensor([0, 2, 1], dtype=torch.int32), torch.tensor([4, 0, 2], dtype=torch.int32)
    contents, ends = torch.arange(1, 8).to(dtype), torch.tensor([3, 4, 7], dtype=torch.int32)
    name, constants = "buffer_utils._apply_write_kernel", {"BLOCK_SIZE": 2, "MULTI_GROUP": False}
    wide = torch.zeros(5, 6, dtype=dtype)
    same_as_kernel(name, (3,), wide, 6, indices, starts, contents, ends, None, **constants)
    flat, ones = torch.zeros(5, dtype=dtype), torch.tensor([1, 2, 3], dtype=torch.int32)
    same_as_kernel(name, (3,), flat, 1, indices, torch.zeros_like(starts), contents[:3], ones, None, **constants)
