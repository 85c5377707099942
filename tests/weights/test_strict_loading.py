"""For any contents, reading a file gives tensors, or an error that mentions the file."""

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stretto.errors import CheckpointError
from stretto.weights.loading import load_strictly, read_tensors

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
LAYOUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "safetensors": ("codec.safetensors", lambda path: save_file(TENSORS, path)),
    "an archive": ("codec.pth", lambda path: torch.save(TENSORS, path)),
    "before torch 1.6": (
        "codec.pth",
        lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
    ),
}


class Command:
    """Pickled object that makes a directory when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_corrupted_weights_file_loads_or_raises_with_its_path(tmp_path: Path, layout: str) -> None:
    """Random bytes are changed, and every second file is also truncated."""
    name, save = LAYOUTS[layout]
    path, random = tmp_path / name, np.random.default_rng(1)
    save(path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    module, refused = torch.nn.Linear(3, 2), list[str]()
    for number in range(200):
        changed = content[: random.integers(len(content)) if number % 2 else None].copy()
        places = random.integers(max(1, len(changed)), size=random.integers(1, 9))
        changed[places[: len(changed)]] = random.integers(256, size=len(places[: len(changed)]))
        path.write_bytes(changed.tobytes())
        try:
            load_strictly(module, read_tensors(path), path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) >= 100
    assert all(message.startswith(f"{path}: ") for message in refused)
    path.write_bytes(content.tobytes())
    load_strictly(module, read_tensors(path), path)
    assert torch.equal(module.weight, TENSORS["weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": Command()}, "expected tensors, got UnpicklingError"),
        ([torch.ones(2)], "expected tensors by name, got list"),
        ({}, "expected tensors by name, got none"),
        ({"weight": TENSORS, 3: torch.ones(2)}, "expected tensors by name, got ['3', 'weight']"),
    ],
)
def test_hostile_tensor_files_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "flow.pt")
    with pytest.raises(CheckpointError) as error:
        read_tensors(Path("flow.pt"))
    assert str(error.value).startswith(f"flow.pt: {message}")
    assert not Path("was-run").exists()


NO_WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "of no memory": lambda: torch.ones(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "one number for all": lambda: torch.ones(1, dtype=torch.float64).expand(1 << 46),
    "complex": lambda: torch.full((3,), 1 + 2j),
}


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state|TypedStorage)", "ignore:torch.quantize")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_error_names_tensors_that_are_not_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "flow.pt"
    torch.save({"bias": torch.ones(2), "weight": NO_WEIGHTS[kind]()}, path)
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    assert str(error.value) == f"{path}: expected dense tensors of real numbers, got other values in weight"


def test_unsupported_tensor_dtype_is_reported(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3, dtype=torch.uint8).view(torch.bits8)}, tmp_path / "flow.pt")
    with pytest.raises(CheckpointError, match=r"flow\.pt: expected tensors, got NotImplementedError"):
        read_tensors(tmp_path / "flow.pt")


def test_saved_tensor_view_is_read_correctly(tmp_path: Path) -> None:
    torch.save({"weight": TENSORS["weight"].T[1:]}, tmp_path / "flow.pt")
    assert read_tensors(tmp_path / "flow.pt")["weight"].tolist() == [[1, 4], [2, 5]]


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors"])
def test_missing_file_error_names_the_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: expected tensors, got FileNotFoundError"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_error_names_non_finite_tensors(value: float) -> None:
    with pytest.raises(CheckpointError, match=r"here: expected finite numbers, got NaN or infinity in bias"):
        load_strictly(torch.nn.Linear(3, 2), TENSORS | {"bias": torch.tensor([0.0, value])}, Path("here"))


@pytest.mark.parametrize("kind", ["compressed", "overlapping"])
def test_zip_bomb_checkpoint_is_refused_before_unpacking(kind: str, tmp_path: Path) -> None:
    """3 MB would expand to 3 GB. `torch.save` does not compress, and its records do not share bytes."""
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    method = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
        if kind == "overlapping":
            largest = max(archive.filelist, key=lambda record: record.file_size)
            archive.filelist += [largest] * 100
    with pytest.raises(CheckpointError, match=r"model\.pth: expected an uncompressed archive of torch\.save"):
        read_tensors(path)


def test_fifo_as_weights_file_is_refused(tmp_path: Path) -> None:
    for name in ("codec.pth", "codec.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name}: expected a regular file, got a FIFO"):
            read_tensors(tmp_path / name)
