"""Engine hosts are forked by the spare process, and end their engines when their client ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Listener
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from vllm.engine import arg_utils
from vllm.platforms import current_platform

from stretto.config import EngineConfig
from stretto.engine import host
from stretto.engine.environment import HELD_MB, PROCESS_METHOD
from stretto.engine.llm import SpeechLLM
from stretto.errors import CheckpointError, StrettoError
from stretto.families.tiny.family import TINY
from stretto.launcher.processes import birth, descendants, read_process
from stretto.machine.spare_process import listen
from stretto.machine.worker_process import ENGINE_SPARE, SPARE_NAME
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import DEFAULTS
from tests.patience import until
from tests.random_checkpoints import write_checkpoint
from tests.tiers import by_night

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start the spare process that all engines of this module use, and yield its pid."""
    path = tmp_path_factory.mktemp("spare") / "socket"
    with listen(path) as listener:
        descriptor = listener.fileno()
        command = [sys.executable, "-P", "-m", "stretto.engine.host", "spare", str(descriptor)]
        process = subprocess.Popen(command, pass_fds=[descriptor])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENGINE_SPARE, str(path))
        yield process.pid
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny"), DEFAULTS)


def has_ended(pid: int) -> bool:
    found = read_process(pid)
    return found is None or birth(pid) is None


async def speak(llm: SpeechLLM) -> int:
    report = [chunk async for chunk in llm.generate(make_prompt(TINY, 6))][-1].chunk.report
    assert report is not None
    return report.num_frames


async def test_engine_from_the_spare_process_ends_with_its_client(spare: int, config: EngineConfig) -> None:
    llm = SpeechLLM.launch(config)
    assert await speak(llm) > 0
    (engine,) = llm.engine_pids
    assert engine in [each.pid for each in descendants(os.getpid())], "as the launcher finds the processes of a stub"
    found = read_process(engine)
    assert found is not None
    assert found.command.startswith("VLLM::")
    spared = read_process(spare)
    assert spared is not None
    assert spared.name == SPARE_NAME
    with socket.socket(fileno=os.dup(llm._engine._connection._host.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)  # as the kernel does when this process is killed
    until(lambda: has_ended(engine))
    llm.shutdown()


@pytest.mark.parametrize(
    ("method", "is_host"), [("fork", False), *by_night(("fork", True), ("spawn", False), ("spawn", True))]
)
async def test_killed_engine_fails_its_replies_and_the_spare_takes_over(
    spare: int, config: EngineConfig, method: str, is_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROCESS_METHOD, method)
    llm = SpeechLLM.launch(config)
    (engine,) = llm.engine_pids
    os.kill(engine, signal.SIGSTOP)  # so that it cannot complete the reply before it is killed
    reply = asyncio.create_task(speak(llm))
    await asyncio.sleep(0)
    found = read_process(engine)
    assert found is not None
    os.kill(found.parent if is_host else engine, signal.SIGKILL)
    with pytest.raises(StrettoError, match="the engine has ended"):
        await reply
    until(partial(has_ended, engine))
    llm.shutdown()


@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it hangs"])
def test_unresponsive_spare_process_is_bypassed(
    ends: bool, config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setenv(ENGINE_SPARE, path)
    monkeypatch.setattr(host, "SPARE_S", 600.0 if ends else 0.1)
    with Listener(path, "AF_UNIX") as listener:
        accepting = Thread(target=lambda: listener.accept().close()) if ends else Thread()
        accepting.start()
        connection, child = host.connect_host(config)
        accepting.join()
    connection.close()
    assert child is not None, "this process starts the host itself"
    os.waitpid(child, 0)


@pytest.mark.parametrize("kind", ["eager", "compiled", *by_night("batch-invariant")])
def test_only_an_engine_that_needs_what_the_spare_has_imported_is_forked_from_it(
    spare: int, config: EngineConfig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spare has imported vLLM without the compiler, and as logits may depend on the batch."""
    monkeypatch.setattr(host, "is_batch_invariant", lambda _: kind == "batch-invariant")
    arguments = config.engine_args | {"enforce_eager": kind != "compiled"}
    connection, child = host.connect_host(replace(config, engine_args=arguments))
    connection.close()  # the host ends without a request
    assert (child is None) == (kind == "eager")
    if child is not None:
        os.waitpid(child, 0)


async def test_engine_start_errors_reach_the_client(spare: int, config: EngineConfig) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        SpeechLLM.launch(EngineConfig(Path("/nowhere"), DEFAULTS))
    with pytest.raises(ValueError, match="does not support"):
        SpeechLLM.launch(EngineConfig(config.checkpoint, {**DEFAULTS, "pipeline_parallel_size": 2}))


def test_vllm_gets_the_memory_that_other_processes_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(tmp_path, reserved_mb=6_000)
    assert host.memory_share(config, lambda: 24_000 << 20) == {"gpu_memory_utilization": 0.75}
    assert host.memory_share(EngineConfig(tmp_path), lambda: 24_000 << 20) == {}
    own = EngineConfig(tmp_path, reserved_mb=6_000, memory_mb=3_000)
    assert host.memory_share(own, lambda: 24_000 << 20) == {"gpu_memory_utilization": 0.125}
    monkeypatch.setenv(HELD_MB, "12000")
    assert host.memory_share(config, lambda: 24_000 << 20) == {"gpu_memory_utilization": 0.25}
    monkeypatch.delenv(HELD_MB)
    with pytest.raises(ValueError, match="reserved_mb: expected less than the GPU's 6000 MiB, got 6000"):
        host.memory_share(config, lambda: 6_000 << 20)
    with pytest.raises(ValueError, match="memory_mb: expected at most the GPU's 2000 MiB, got 3000"):
        host.memory_share(own, lambda: 2_000 << 20)
    with pytest.raises(ValueError, match="reserved_mb must be an integer >= 0"):
        EngineConfig(tmp_path, reserved_mb=-1)


def test_engine_on_a_gpu_is_configured_with_its_share(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict[str, Any]()

    def configured(**arguments: Any) -> None:
        given.update(arguments)
        raise LookupError

    monkeypatch.setattr(arg_utils, "AsyncEngineArgs", configured)
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    monkeypatch.setattr(current_platform, "get_device_total_memory", lambda: 24_000 << 20)
    with pytest.raises(LookupError):
        host.vllm_config(replace(config, reserved_mb=6_000))
    assert given["gpu_memory_utilization"] == 0.75
