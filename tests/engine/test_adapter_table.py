"""Adapters are loaded and unloaded by name, from the operator's folder only, and outlive the engine."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stretto.config import EngineConfig
from stretto.engine import adapter_table
from stretto.engine.adapter_table import CONFIG, LOADED, WEIGHTS, AdapterTable
from stretto.errors import InvalidRequest, Overloaded, StrettoError

pytestmark = pytest.mark.asyncio


class Engines:
    """Fake engines: the calls that they have received, and the content of each adapter's file when it was loaded."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.contents: list[bytes] = []
        self.failure = ""

    async def call(self, method: str, argument: Any) -> None:
        self.calls.append((method, argument[:2] if method == "add_lora" else argument))
        if method == "add_lora":
            self.contents.append((Path(argument.path) / WEIGHTS).read_bytes())
            if self.failure:
                raise StrettoError(self.failure.format(argument.path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an operator's folder with two adapters, and put another one beside it."""
    for name in ("operator/narrator", "operator/whisperer", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / CONFIG).write_text("{}")
        (tmp_path / name / WEIGHTS).write_bytes(name.encode())
    return tmp_path / "operator"


@pytest.fixture
def engines() -> Engines:
    return Engines()


def table_of(folder: Path, engines: Engines, slots: int = 2) -> AdapterTable:
    config = EngineConfig(Path("/"), adapters={"built": "/built"}, adapters_folder=str(folder), adapter_slots=slots)
    return AdapterTable(config, engines.call)


async def test_numbers_are_never_used_again(folder: Path, engines: Engines) -> None:
    table = table_of(folder, engines, slots=1)
    for _ in range(3):
        await table.load("n", "narrator")
        await table.unload("n")
    assert [call for call in engines.calls if call[0] == "add_lora"] == [("add_lora", ("n", n)) for n in (2, 3, 4)]
    assert [call for call in engines.calls if call[0] == "remove_lora"] == [("remove_lora", n) for n in (2, 3, 4)]


async def test_an_unloaded_adapter_leaves_after_its_last_reply(folder: Path, engines: Engines) -> None:
    table = table_of(folder, engines, slots=1)
    await table.load("n", str(folder / "narrator"))
    with table.leased("n") as first:
        with table.leased("n") as second:
            assert first == second
            assert first is not None
            await table.unload("n")
        await asyncio.sleep(0)
        with pytest.raises(InvalidRequest, match=r"options\.adapter: expected one of built"), table.leased("n"):
            pass
        with pytest.raises(Overloaded, match="replies still use an adapter"):
            await table.load("w", "whisperer")
        assert engines.calls == [("add_lora", ("n", 2))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert engines.calls[1:] == [("remove_lora", 2)]
    await table.load("w", "whisperer")
    assert table.names == ["built", "w"]


async def test_a_restarted_engine_loads_the_same_adapters(folder: Path, engines: Engines) -> None:
    table = table_of(folder, engines)
    await table.load("n", "narrator")
    await table.load("w", "whisperer")
    await table.unload("n")
    (folder / LOADED).write_text(json.dumps({"gone": "gone", **json.loads((folder / LOADED).read_text())}))
    restarted = table_of(folder, engines)
    (message,) = await restarted.restore()
    assert "adapter 'gone'" in message
    assert restarted.names == ["built", "w"]


def link_outside(folder: Path) -> str:
    (folder / "link").symlink_to(folder.parent / "outside")
    return "link"


def link_file(folder: Path) -> str:
    (folder / "linked").mkdir()
    (folder / "linked" / CONFIG).write_text("{}")
    (folder / "linked" / WEIGHTS).symlink_to(folder.parent / "outside" / WEIGHTS)
    return "linked"


def fifo(folder: Path) -> str:
    (folder / "narrator" / WEIGHTS).unlink()
    os.mkfifo(folder / "narrator" / WEIGHTS)
    return "narrator"


@pytest.mark.parametrize(
    "path",
    [
        lambda _: "../outside",
        lambda folder: str(folder.parent / "outside"),
        lambda _: "missing",
        lambda _: "nul\0",
        lambda _: ".",
        link_outside,
        link_file,
        fifo,
    ],
)
async def test_only_regular_files_of_the_operators_folder_are_read(
    folder: Path, engines: Engines, path: Callable[[Path], str]
) -> None:
    table = table_of(folder, engines)
    with pytest.raises(InvalidRequest, match="lora_path: expected a folder in the server's adapters_folder"):
        await table.load("n", path(folder))
    assert engines.calls == []
    assert not (folder / LOADED).exists()


async def test_a_file_that_is_too_large_is_refused(
    folder: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_table, "MAX_ADAPTER_BYTES", 5)
    with pytest.raises(InvalidRequest, match=rf"a file {WEIGHTS} of at most 5 bytes, got 17"):
        await table_of(folder, engines).load("n", "narrator")


async def test_engines_read_a_copy(folder: Path, engines: Engines) -> None:
    """A file that changes while the engine has it mapped would end the engine."""
    table = table_of(folder, engines)
    await table.load("n", "narrator")
    assert engines.contents == [b"operator/narrator"]
    assert not list(folder.parent.glob("adapter_*"))


async def test_a_failed_load_frees_its_slot(folder: Path, engines: Engines) -> None:
    table = table_of(folder, engines, slots=1)
    engines.failure = "Call to add_lora method failed: adapters.n: {}/" + WEIGHTS + " has no tensors"
    with pytest.raises(InvalidRequest, match=rf"^lora_path: expected .*, got narrator/{WEIGHTS} has no tensors$"):
        await table.load("n", "narrator")
    assert engines.calls[1:] == [("remove_lora", 2)]
    engines.failure = ""
    await table.load("n", "narrator")
    with pytest.raises(InvalidRequest, match=r"lora_name: expected at most 1 loaded adapters \(adapter_slots\)"):
        await table.load("w", "whisperer")


async def test_an_adapter_that_cannot_be_remembered_is_not_loaded(folder: Path, engines: Engines) -> None:
    table = table_of(folder, engines)
    (folder / LOADED).write_text("[]")
    with pytest.raises(InvalidRequest, match=rf"adapters: expected a file {folder / LOADED} that the server can write"):
        await table.load("n", "narrator")
    assert table.names == ["built"]
    assert engines.calls == [("add_lora", ("n", 2)), ("remove_lora", 2)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("built", "lora_name: expected a name that no loaded adapter has, got 'built'"),
        ("", "lora_name: expected 1 to 64 printable characters"),
        ("n" * 65, "lora_name: expected 1 to 64 printable characters"),
        ("a\nb", "lora_name: expected 1 to 64 printable characters"),
    ],
)
async def test_names_that_cannot_be_loaded(folder: Path, engines: Engines, name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await table_of(folder, engines).load(name, "narrator")


async def test_adapters_of_engine_json_stay(folder: Path, engines: Engines) -> None:
    with pytest.raises(InvalidRequest, match=r"lora_name: expected no value \(no adapter was loaded\), got 'built'"):
        await table_of(folder, engines).unload("built")


async def test_without_a_folder_nothing_is_loaded(engines: Engines) -> None:
    table = AdapterTable(EngineConfig(Path("/")), engines.call)
    with pytest.raises(InvalidRequest, match=r"adapters: expected a server with adapters_folder"):
        await table.load("n", "narrator")
    assert await table.restore() == []
