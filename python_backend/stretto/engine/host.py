"""Host process that runs vLLM's engines, and the spare process, which imports vLLM in advance and forks hosts.

    python -m stretto.engine.host DESCRIPTOR          # one host, for the client at the other end of a connection
    python -m stretto.engine.host spare DESCRIPTOR    # the spare, for clients of a listening Unix socket

A host builds vLLM's configuration, lets vLLM start its engine processes, and stops them when its client exits. The
spare forks a host in milliseconds, whereas importing vLLM takes seconds. The spare never initialises a device, because
a process that has initialised one cannot be forked.
"""

import importlib
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stretto.config import EngineConfig
from stretto.engine.environment import (
    HELD_MB,
    PROCESS_METHOD,
    is_cpu_build,
    prepare_environment,
    require_batch_invariance,
)
from stretto.engine.preloading import WARM, has_preloaded, lean_imports
from stretto.engine.protocol import STATS_KEY
from stretto.errors import CheckpointError
from stretto.family.plugin import all_layers_slide, config_at, family_at
from stretto.machine import spare_process
from stretto.machine.worker_process import ENGINE_SPARE, HOST_NAME, LIBC, PR_SET_NAME, SPARE_NAME, die_with_parent
from stretto.streams.layout import LatentSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig

END_S = 5.0
MODULE = "stretto.engine.host"
SPARE = "spare"
SPARE_S = 120.0  # time for the spare's imports on a busy machine


SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechScheduler"
WORKER = "stretto.engine.worker.model_state.SpeechWorker"
ASYNC_SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechAsyncScheduler"
CAPTURE_SIZES = "max_cudagraph_capture_size", "cudagraph_capture_sizes"
MAX_CAPTURED_ROWS = 512  # vLLM's own limit


def vllm_config(config: EngineConfig) -> "VllmConfig":
    """Return vLLM's configuration for `config`, with the plugin's scheduler, worker and options.

    Raises:
        ValueError: If an option is not supported.
        CheckpointError: If the checkpoint or an adapter is unusable.
    """
    prepare_environment()
    latents = family_at(config.checkpoint).layout.latents
    if is_batch_invariant(config):
        require_batch_invariance()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    from stretto.engine import adapters
    from stretto.engine.adapters import check_config

    folders = config.adapter_folders
    config_at(config.checkpoint)  # rejects keys that make vLLM load code or a model from elsewhere
    arguments = config.engine_args | adapters.lora_arguments(config)
    paths = {name: str(folder) for name, folder in folders.items()}
    check_latent_steps(config, latents)
    names = "kv_share", "live_reserve", "latent_steps", "int8", "submit_early_ms", "first_chunk"
    ours = {name: getattr(config, name) for name in names}
    ours |= {adapters.KEY: paths, adapters.FOLDER: config.adapters_folder}
    ours = {name: value for name, value in ours.items() if value not in (None, {}, ())}
    if ours:
        arguments["additional_config"] = arguments.get("additional_config", {}) | ours
    if current_platform.is_cpu():
        from stretto.cpu_backend.products import IR_OP_PRIORITY

        arguments.setdefault("kernel_config", {"ir_op_priority": IR_OP_PRIORITY})
    else:
        arguments = memory_share(config, current_platform.get_device_total_memory) | arguments | captured_rows(config)
        if latents is not None:  # by default, attention would multiply float32 in reduced precision (TF32)
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    wants_async = arguments.pop("async_scheduling", not current_platform.is_cpu())
    if config.submit_early_ms is not None and not wants_async:
        raise ValueError(f"submit_early_ms: expected null without async_scheduling, got {config.submit_early_ms}")
    arguments.setdefault("use_tqdm_on_load", False)  # no progress bar in the log
    args = AsyncEngineArgs(
        model=str(config.checkpoint),
        skip_tokenizer_init=True,
        scheduler_cls=ASYNC_SCHEDULER if wants_async else SCHEDULER,
        async_scheduling=wants_async,
        worker_cls=WORKER,
        **arguments,
    )
    method = os.environ.get(PROCESS_METHOD)
    built = args.create_engine_config()
    if method is not None:
        os.environ[PROCESS_METHOD] = method  # restore the user's choice, which the CPU platform overwrites
    check_config(built)
    check_int8(config, built)
    check_first_chunk(config, built)
    check_sizes(built)
    check_latent_table(built, latents)
    adapters.restrict_to_backbone(built, folders)
    # vLLM disables async scheduling on the CPU, where it gains little; tests need it.
    built.scheduler_config.async_scheduling = wants_async
    return built


def is_batch_invariant(config: EngineConfig) -> bool:
    """Return True if logits must not depend on the batch: by default, for families with latents on a GPU."""
    if config.batch_invariant is not None:
        return config.batch_invariant
    return family_at(config.checkpoint).layout.latents is not None and not is_cpu_build()


def check_latent_steps(config: EngineConfig, latents: LatentSpec | None) -> None:
    """Raise ValueError unless the family permits all solver step counts in `latent_steps`."""
    permitted = range(0) if latents is None else latents.steps
    for number in config.latent_steps:
        if number not in permitted:
            expected = f"numbers in [{permitted.start}, {permitted[-1]}]" if permitted else "none (frames are codes)"
            raise ValueError(f"latent_steps: expected {expected}, got {number}")


def check_int8(config: EngineConfig, built: "VllmConfig") -> None:
    """Raise ValueError if int8 is requested on a GPU, for a compiled or quantized model, or with dummy weights."""
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    if not config.int8:
        return
    if not current_platform.is_cpu():
        raise ValueError("int8: expected false on a GPU, got true")
    if built.compilation_config.mode != CompilationMode.NONE:
        raise ValueError("int8: expected false unless enforce_eager is true, got true")
    if built.model_config.quantization is not None:
        raise ValueError(f"int8: expected false with quantization {built.model_config.quantization!r}, got true")
    if built.load_config.load_format == "dummy":
        raise ValueError("int8: expected false with load_format 'dummy', got true")


def check_first_chunk(config: EngineConfig, built: "VllmConfig") -> None:
    """Raise ValueError or CheckpointError if `first_chunk` does not suit the engine's processes or the family."""
    if config.first_chunk is None:
        return
    if built.parallel_config.world_size > 1:
        size = built.parallel_config.world_size
        raise ValueError(f"first_chunk: expected null with {size} processes of the engine, got {config.first_chunk!r}")
    family_at(config.checkpoint).check_plain_frames(config.first_chunk)


NORM_WIDTHS = 8  # vLLM's RMS norm on a CPU reads whole vectors of this number of elements


def check_sizes(built: "VllmConfig") -> None:
    """Raise CheckpointError for sizes that vLLM's attention and RMS norm do not support on a CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from stretto.cpu_backend.attention import supported_head_sizes

    size = built.model_config.get_head_size()
    sizes = supported_head_sizes(built)
    if size not in sizes:
        expected = ", ".join(map(str, sizes))
        raise CheckpointError(f"config.json: head_dim: expected one of {expected} on a CPU, got {size}")
    width = built.model_config.get_hidden_size()
    if width % NORM_WIDTHS and hasattr(built.model_config.hf_config, "rms_norm_eps"):
        expected = f"a multiple of {NORM_WIDTHS}"
        raise CheckpointError(f"config.json: hidden_size: expected {expected} on a CPU, got {width}")


def check_latent_table(config: "VllmConfig", latents: LatentSpec | None) -> None:
    """For a family with latents, raise ValueError unless the dtype is float32 and the table of latents fits.

    The table has one entry per slot and position, and may take at most an eighth of the KV cache. A cache without a
    fixed size is not compared.
    """
    if latents is None:
        return
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    if dtype != "float32":
        raise ValueError(f"dtype: expected 'float32', because latents are fed back in float32, got {dtype!r}")
    memory = config.cache_config.kv_cache_memory_bytes
    if memory is None:
        return
    num_slots = config.scheduler_config.max_num_seqs
    length = config.model_config.max_model_len
    if latents.cache_bytes(num_slots, length) > memory:
        longest = latents.max_rows(num_slots, memory)
        raise ValueError(
            f"max_model_len: expected at most {longest} with max_num_seqs {num_slots}, so that latents take at most an"
            f" eighth of kv_cache_memory_bytes ({memory}), got {length}"
        )


def memory_share(config: EngineConfig, total_bytes: Callable[[], int]) -> dict[str, Any]:
    """Return vLLM's argument for the engine's share of the GPU's memory (empty if no option limits it).

    The share is `memory_mb` or, without this option, all memory except `reserved_mb` and that of other programs.
    `stretto run` measures the memory of other programs and passes it in the environment variable `HELD_MB`.

    Raises:
        ValueError: If nothing is left, or `memory_mb` is more than the GPU has.
    """
    if config.memory_mb is None and config.reserved_mb is None:
        return {}
    total_mb = total_bytes() >> 20
    if config.memory_mb is not None:
        if config.memory_mb > total_mb:
            raise ValueError(f"memory_mb: expected at most the GPU's {total_mb} MiB, got {config.memory_mb}")
        return {"gpu_memory_utilization": config.memory_mb / total_mb}
    assert config.reserved_mb is not None
    reserved_mb = config.reserved_mb + int(os.environ.get(HELD_MB) or 0)
    if reserved_mb >= total_mb:
        raise ValueError(f"reserved_mb: expected less than the GPU's {total_mb} MiB, got {reserved_mb}")
    return {"gpu_memory_utilization": (total_mb - reserved_mb) / total_mb}


def captured_rows(config: EngineConfig) -> dict[str, Any]:
    """Return the vLLM argument that sets the maximum number of rows in a CUDA graph (empty if unneeded).

    vLLM's default is two rows per request. In a family with multi-token steps, a request has a window of rows, which
    needs more. A value set by the operator is kept.
    """
    arguments = config.engine_args
    family = family_at(config.checkpoint)
    steps = family.mechanism.steps
    compilation = arguments.get("compilation_config")
    options = {**arguments, **(compilation if isinstance(compilation, dict) else {})}
    if steps is None or "max_num_seqs" not in options or any(name in options for name in CAPTURE_SIZES):
        return {}
    return {CAPTURE_SIZES[0]: min(MAX_CAPTURED_ROWS, steps.window * options["max_num_seqs"])}


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Request to a host process to start engines.

    Attributes:
        stats: Path of the shared statistics (`protocol.SharedStats`).
        inputs, outputs: ZMQ addresses from which engines read requests, and to which they write outputs.
        owner: Pid of the process that sent the request.
    """

    config: EngineConfig
    stats: str
    inputs: str
    outputs: str
    environment: dict[str, str]
    owner: int


@dataclass(frozen=True, slots=True)
class StartedEngines:
    """Reply of a host whose engines are ready.

    Attributes:
        window: Number of rows that each row attends to, if all layers have a sliding window; else None.
        num_in_flight: Maximum number of rows of a request that are being computed; set only if there is a window.
    """

    pids: list[int]
    window: int | None = None
    num_in_flight: int = 0


def run(connection: Connection) -> None:
    """Start engines for a client, and stop them when the client requests it or exits.

    The client sends a `StartRequest` and later None. It receives `StartedEngines`, or the exception that the start
    raised.
    """
    request: StartRequest = connection.recv()
    LIBC.prctl(PR_SET_NAME, f"{HOST_NAME}{request.owner}".encode())
    os.environ.update(request.environment)
    os.environ.setdefault(PROCESS_METHOD, "fork")
    os.register_at_fork(after_in_child=die_with_parent)
    try:
        started, config = _start(request)
    except Exception as error:
        error_type = next(
            (candidate for candidate in (CheckpointError, ValueError) if isinstance(error, candidate)), RuntimeError
        )
        connection.send(error_type(str(error)))  # exceptions of other types may not survive pickling
        return
    processes = started.engine_manager.processes
    hf_config = config.model_config.hf_config
    window = hf_config.sliding_window if all_layers_slide(getattr(hf_config, "layer_types", None)) else None
    num_in_flight = 0 if window is None else config.max_in_flight_tokens
    connection.send(StartedEngines([process.pid for process in processes], window, num_in_flight))
    ready = wait([connection, *(process.sentinel for process in processes)])
    has_asked = connection in ready and _has_message(connection)
    if started.coordinator is not None:
        started.coordinator.shutdown()
    started.engine_manager.shutdown(timeout=END_S if has_asked else 0.0)


def _start(request: StartRequest) -> "tuple[Any, VllmConfig]":
    config = vllm_config(request.config)  # sets the environment before vLLM is imported

    from vllm.v1.engine.core import EngineZmqAddresses
    from vllm.v1.engine.core_client import launch_core_engines
    from vllm.v1.executor import Executor

    assert isinstance(config.additional_config, dict)
    config.additional_config = config.additional_config | {STATS_KEY: request.stats}
    addresses = EngineZmqAddresses(inputs=[request.inputs], outputs=[request.outputs])
    with launch_core_engines(config, Executor.get_class(config), False, addresses) as started:
        pass  # waits until the engines are ready
    return started, config


def _has_message(connection: Connection) -> bool:
    try:
        connection.recv()
    except EOFError:
        return False
    return True


def serve(listener: socket.socket) -> NoReturn:
    """Import the modules that engines need, then fork a host for each client."""
    prepare_environment()
    with lean_imports():
        spare_process.preload(SPARE_NAME, WARM)
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError("a GPU was initialised by imports, so this process cannot be forked")
    spare_process.serve(listener)


def connect_host(config: EngineConfig) -> tuple[Connection, int | None]:
    """Return the connection to a new host process, and its pid if it is a child of this process.

    The host is forked by the launcher's spare process, which has imported vLLM. Without a spare, this process forks the
    host if vLLM is configured to fork, or else starts a new Python process. The spare is not used for batch-invariant
    engines, because vLLM reads that setting while it is imported.
    """
    ours, theirs = Pipe()
    number = theirs.fileno()
    spare = os.environ.get(ENGINE_SPARE)
    if spare and has_preloaded(config) and not is_batch_invariant(config):
        forked = spare_process.fork(Path(spare), MODULE, [str(number)], descriptors={number: number})
        has_started = forked is not None and forked.has_started(SPARE_S)
        if forked is not None:
            forked.close()
        if has_started:
            theirs.close()
            return ours, None
    if os.environ.get(PROCESS_METHOD) == "fork":
        pid = os.fork()
        if pid == 0:
            ours.close()
            run_forked(theirs)
    else:
        os.set_inheritable(number, True)
        pid = os.posix_spawn(sys.executable, [sys.executable, "-P", "-m", MODULE, str(number)], os.environ)
    theirs.close()
    return ours, pid


def run_forked(connection: Connection) -> NoReturn:
    """Run a host in this forked process, then exit."""
    try:
        run(connection)
    finally:
        connection.close()
        os._exit(0)


def main(words: list[str]) -> None:
    """Run a host or the spare, with arguments as in the module docstring."""
    spare_process.locate_title()
    if words[0] == SPARE:
        serve(socket.socket(fileno=int(words[1])))
    else:
        run(Connection(int(words[0])))


if __name__ == "__main__":  # pickled records must not belong to the module `__main__`
    importlib.import_module("stretto.engine.host").main(sys.argv[1:])
