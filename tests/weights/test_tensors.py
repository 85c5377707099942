"""Files written tensor by tensor equal the files of the library."""

import hashlib
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stretto.weights.loading import PendingTensor, copy_file, split, write_file, write_shards


def entries(tensors: dict[str, Tensor]) -> list[PendingTensor]:
    return [
        PendingTensor(name, tensor.dtype, tuple(tensor.shape), lambda name=name: tensors[name])
        for name, tensor in tensors.items()
    ]


def test_every_dtype_and_shape_round_trips(tmp_path: Path) -> None:
    tensors = {
        "table": torch.randn(5, 3),
        "odd": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(3, 3).to(torch.bfloat16),
        "view": torch.randn(4, 6).T,
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flags": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 4),
    }
    written = write_file(tmp_path / "x.safetensors", entries(tensors), lambda num_bytes: None)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    content = (tmp_path / "x.safetensors").read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.num_bytes == len(content)


def test_tensors_are_written_with_their_declared_dtype(tmp_path: Path) -> None:
    wide = torch.randn(3, 5)
    write_file(
        tmp_path / "x.safetensors", [PendingTensor("x", torch.bfloat16, (3, 5), lambda: wide)], lambda num_bytes: None
    )
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], wide.to(torch.bfloat16))


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def read() -> Tensor:
        assert all(tensor() is None for tensor in alive), "the one before is still there"
        tensor = torch.ones(100)
        alive.append(weakref.ref(tensor))
        return tensor

    made = [PendingTensor(str(index), torch.float32, (100,), read) for index in range(5)]
    write_file(tmp_path / "x.safetensors", made, lambda num_bytes: None)
    assert len(alive) == 5


def test_tensor_with_unexpected_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"x: \(2,\) for \(3,\)"):
        write_file(
            tmp_path / "x", [PendingTensor("x", torch.float32, (3,), lambda: torch.ones(2))], lambda num_bytes: None
        )


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1 << 20, ["abcd"]), (100, ["a", "b", "cd"]), (64, ["a", "b", "c", "d"]), (1, ["a", "b", "c", "d"])],
)
def test_shards_are_filled_in_order_with_at_least_one_tensor(limit: int, expected: list[str]) -> None:
    sizes = {"a": 15, "b": 16, "c": 14, "d": 10}  # float32: 60, 64, 56, 40 bytes
    made = entries({name: torch.zeros(size) for name, size in sizes.items()})
    assert ["".join(each.name for each in shard) for shard in split(made, limit)] == expected


def test_index_maps_each_tensor_to_its_shard(tmp_path: Path) -> None:
    tensors = {name: torch.randn(10) for name in "abcde"}
    done: list[int] = []
    files = write_shards(tmp_path, entries(tensors), 80, done.append)
    assert [file.name for file in files] == [
        *[f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)],
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(done) == 5 * 40
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_file_copy_reports_size_and_checksum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"words" * 1000)
    written = copy_file(tmp_path / "a", tmp_path / "b", "codec/b")
    assert (tmp_path / "b").read_bytes() == b"words" * 1000
    assert (written.name, written.num_bytes) == ("codec/b", 5000)
    assert written.sha256 == hashlib.sha256(b"words" * 1000).hexdigest()
