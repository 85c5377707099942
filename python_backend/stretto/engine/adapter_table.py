"""LoRA adapters of a running engine, some of which the operator loads and unloads by name."""

import asyncio
import fcntl
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from stretto.config import EngineConfig
from stretto.engine.protocol import Adapter, configured_adapters
from stretto.errors import CheckpointError, InvalidRequest, Overloaded, StrettoError, shown
from stretto.untrusted_files import json_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LOADED = "loaded.json"  # file in the operator's folder, from which a restarted engine loads the same adapters
MAX_NAME_CHARS = 64
MAX_ADAPTER_BYTES = 1 << 30

CallEngines = Callable[..., Coroutine[Any, Any, None]]
"""Calls a method of all engines; `EngineClient.call`."""


class AdapterTable:
    """LoRA adapters that requests may name: those listed in `engine.json`, and those loaded later.

    Each adapter has a number of its own, which is never used again, because the prefix cache is keyed by it. A reply
    holds its adapter until it ends, so an adapter that is unloaded leaves the engine after its last reply.
    """

    def __init__(self, config: EngineConfig, call: CallEngines):
        self._call = call
        self._folder = config.loadable_folder
        self._num_slots = config.adapter_slots
        self._configured = config.adapter_folders
        self._named = {adapter.name: adapter for adapter in configured_adapters(self._configured)}
        self._numbers = count(len(self._named) + 1)
        self._num_taken = 0  # slots of loaded adapters, also of those that are being loaded or unloaded
        self._num_replies = Counter[int]()
        self._unloaded: dict[int, Adapter] = {}  # adapters that replies still use, by number
        self._removing = set[asyncio.Task[None]]()
        self._changing = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the adapters, as used in requests."""
        return [*self._named]

    @contextmanager
    def leased(self, name: str | None) -> Iterator[Adapter | None]:
        """Keep an adapter in the engine during the `with` block, or raise InvalidRequest for an unknown name.

        If `name` is None, yield None.
        """
        if name is None:
            yield None
            return
        if name not in self._named:
            expected = f"one of {', '.join(self._named)}" if self._named else "no value (this server has no adapters)"
            raise InvalidRequest("options.adapter", expected, shown(name))
        adapter = self._named[name]
        self._num_replies[adapter.number] += 1
        try:
            yield adapter
        finally:
            self._num_replies[adapter.number] -= 1
            if not self._num_replies[adapter.number]:
                del self._num_replies[adapter.number]
                if self._unloaded.pop(adapter.number, None) is not None:
                    self._start_removal(adapter)

    async def restore(self) -> list[str]:
        """Load the adapters that were loaded before the engine was restarted, and return a message for each failure."""
        if self._folder is None:
            return []
        failures = []
        try:
            remembered = await asyncio.to_thread(read_loaded, self._folder)
        except CheckpointError as error:
            return [str(error)]
        for name, path in remembered.items():
            try:
                await self._load(self._folder, name, path, is_new=False)
            except StrettoError as error:
                failures.append(f"adapter {shown(name)} of {self._folder / LOADED} is not loaded: {error}")
        return failures

    async def load(self, name: str, path: str) -> None:
        """Load an adapter, also after each later restart of the engine.

        Args:
            path: Folder of the adapter, in the operator's folder or relative to it.

        Raises:
            InvalidRequest: If the adapter cannot be loaded.
            Overloaded: If all slots are taken, and a reply still uses an adapter that was unloaded.
        """
        await self._load(self._expect_folder(), name, path, is_new=True)

    async def unload(self, name: str) -> None:
        """Unload an adapter, which replies in progress keep using, or raise InvalidRequest if it was not loaded."""
        folder = self._expect_folder()
        async with self._changing:
            if name not in self._named or name in self._configured:
                loaded = [other for other in self._named if other not in self._configured]
                expected = f"one of {', '.join(loaded)}" if loaded else "no value (no adapter was loaded)"
                raise InvalidRequest("lora_name", expected, shown(name))
            adapter = self._named.pop(name)
            await asyncio.to_thread(remember, folder, name, None)
            if self._num_replies[adapter.number]:
                self._unloaded[adapter.number] = adapter
            else:
                await self._remove(adapter)

    def _expect_folder(self) -> Path:
        if self._folder is None:
            raise InvalidRequest("adapters", "a server with adapters_folder in its engine.json", "one without it")
        return self._folder

    async def _load(self, folder: Path, name: str, path: str, is_new: bool) -> None:
        if not (0 < len(name) <= MAX_NAME_CHARS and name.isprintable()):
            raise InvalidRequest("lora_name", f"1 to {MAX_NAME_CHARS} printable characters", shown(name))
        async with self._changing:
            if name in self._named:
                raise InvalidRequest("lora_name", "a name that no loaded adapter has", shown(name))
            if self._num_taken == self._num_slots:
                if self._unloaded or self._removing:
                    raise Overloaded("replies still use an adapter that was unloaded; try again")
                raise InvalidRequest("lora_name", f"at most {self._num_slots} loaded adapters (adapter_slots)", "more")
            self._num_taken += 1
            adapter = Adapter(name, next(self._numbers), path)
            try:
                # a copy, because the file is mapped into memory while it is read, and must not change meanwhile
                with tempfile.TemporaryDirectory(prefix="adapter_", dir=os.environ.get("VLLM_RPC_BASE_PATH")) as copy:
                    await asyncio.to_thread(copy_adapter, folder, path, Path(copy))
                    await self._add(adapter, copy)
                if is_new:
                    await self._remember(folder, adapter)
            except BaseException:
                self._num_taken -= 1
                raise
            self._named[name] = adapter

    async def _add(self, adapter: Adapter, copy: str) -> None:
        try:
            await self._call("add_lora", adapter._replace(path=copy))
        except StrettoError as error:
            await self._call("remove_lora", adapter.number)  # from the engines that have loaded it
            got = str(error).replace(copy, adapter.path).partition(f"{adapter.name}: ")
            raise InvalidRequest("lora_path", "an adapter for this model", got[2] or got[0]) from error

    async def _remember(self, folder: Path, adapter: Adapter) -> None:
        try:
            await asyncio.to_thread(remember, folder, adapter.name, adapter.path)
        except InvalidRequest:
            await self._call("remove_lora", adapter.number)
            raise

    def _start_removal(self, adapter: Adapter) -> None:
        task = asyncio.get_running_loop().create_task(self._remove(adapter))
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    async def _remove(self, adapter: Adapter) -> None:
        await self._call("remove_lora", adapter.number)
        self._num_taken -= 1


def copy_adapter(root: Path, path: str, target: Path) -> None:
    """Copy the files of an adapter from the folder `path`, which is absolute or relative to `root`.

    Raises:
        InvalidRequest: If a file is missing, is outside `root`, is not regular or is too large.
    """
    expected = f"a folder in the server's adapters_folder with {CONFIG} and {WEIGHTS}"
    try:
        folder = (root / path).resolve(strict=True)
        is_inside = folder.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a link to itself; ValueError: a NUL character
        is_inside = False
    if not is_inside:
        raise InvalidRequest("lora_path", expected, shown(path))
    for name in (CONFIG, WEIGHTS):
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise InvalidRequest("lora_path", expected, shown(path)) from None
        with open(descriptor, "rb"):
            status = os.fstat(descriptor)
            opened = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # a link may have changed since it was checked
            if not stat.S_ISREG(status.st_mode) or not opened.is_relative_to(root.resolve()):
                raise InvalidRequest("lora_path", expected, shown(path))
            if status.st_size > MAX_ADAPTER_BYTES:
                raise InvalidRequest("lora_path", f"a file {name} of at most {MAX_ADAPTER_BYTES} bytes", status.st_size)
            with (target / name).open("wb") as copy:
                num_left = status.st_size
                while num_left and (num_sent := os.sendfile(copy.fileno(), descriptor, None, num_left)):
                    num_left -= num_sent


def read_loaded(folder: Path) -> dict[str, str]:
    """Return the paths of the adapters to load, by name, or raise CheckpointError if the file is unreadable."""
    path = folder / LOADED
    if not path.exists():
        return {}
    record = json_object(path)
    if not all(isinstance(value, str) for value in record.values()):
        raise CheckpointError(f"{path}: expected an object of names and folders, got {shown(record)}")
    return record


def remember(folder: Path, name: str, path: str | None) -> None:
    """Add an adapter to the file of those to load, or remove it if `path` is None; raise InvalidRequest on failure.

    Servers with the same folder, such as replicas, share the file.
    """
    try:
        with (folder / f".{LOADED}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            paths = read_loaded(folder)
            if path is None:
                paths.pop(name, None)
            else:
                paths[name] = path
            written = folder / f".{LOADED}.new"
            written.write_text(json.dumps(paths, indent=1), encoding="utf-8")
            written.replace(folder / LOADED)
    except (OSError, CheckpointError) as error:
        raise InvalidRequest("adapters", f"a file {folder / LOADED} that the server can write", str(error)) from error
