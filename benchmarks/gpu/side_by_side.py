"""Job that runs an engine and a decoder on one GPU in two processes, with the memory that a server gives them.

The model is Qwen3-TTS 1.7B with the arguments that `make-repository --gpu` writes, except that the engine captures
graphs for few numbers of rows, so that it starts in less time. The job starts

- the engine, then the decoder beside it (`order` "engine, decoder");
- the engine again beside the running decoder ("decoder, engine"), as after a failure of the engine;
- both at the same time under NVIDIA's MPS, if its program is installed ("together"): first with kernels of equal
  priority, then with those of the decoder after those of the engine, as in a server.

Each start is a line with the free memory of the GPU before and after it, the decoder's graphs, the engine's KV blocks,
or the error. `used_mib` of the decoder must not exceed `budget_mib`, which the engine leaves it; it is null if the
engine starts at the same time, because only the free memory of the whole GPU is known. Then 32 streams step beside a
decoder without work, and beside one that decodes steady chunks of 32 utterances without a pause.
"""

import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Setup, failure
from stretto.launcher import mps
from stretto.launcher.installation import LaunchError
from stretto.launcher.launch import Launch
from stretto.launcher.options import RepositoryOptions
from stretto.triton_io import stub

# The job's process forks all others. It computes nothing with torch, whose threads and CUDA do not survive a fork.

MODEL = "qwen3_tts"
STREAMS = 32
STREAMS_ON_CPU = 2
# patience with a process: the time limit of the job ends it earlier
START_S = 150.0
STEPS_S = 60.0


@dataclass(frozen=True)
class Server:
    """Files and settings of the two processes.

    Attributes:
        checkpoint: Folder with config.json and the codec.
        needs: Memory of the processes on the GPU (`stretto.machine.sizing.Needs`).
    """

    setup: Setup
    checkpoint: Path
    engine: Path
    needs: Any

    @property
    def streams(self) -> int:
        return STREAMS_ON_CPU if self.setup.is_small else STREAMS


def write_server(folder: Path, setup: Setup) -> Server:
    """Write the files of a server: config.json, engine.json and the codec with random weights."""
    from benchmarks.gpu.models import COMPILED, MODELS, engine_args, needs_of, write_config
    from lab.releases.random_qwen3_codec import write_qwen3_codec
    from stretto.convert.profiles import engine_arguments
    from stretto.family.plugin import config_at

    model = MODELS[MODEL]
    family = model.read_family(setup)
    checkpoint = write_config(folder, model, setup)
    write_qwen3_codec(folder / "codec", "small" if setup.is_small else "wide")
    if setup.is_small:
        arguments = engine_args(setup, model, (1, STREAMS_ON_CPU))
    else:
        arguments = engine_arguments(config_at(checkpoint), family, is_on_gpu=True) | {
            "load_format": "dummy",
            "compilation_config": {**COMPILED, "cudagraph_capture_sizes": [1, STREAMS]},
        }
    needs = needs_of(checkpoint, family, arguments)
    path = folder / "engine.json"
    path.write_text(json.dumps(arguments | {"reserved_mb": needs.reserved_mb}))
    return Server(setup, checkpoint, path, needs)


class Decoder:
    """The acoustic decoder, configured as in a model repository for a GPU."""

    def __init__(self, server: Server) -> None:
        from benchmarks.decoder import Arm
        from benchmarks.gpu.decoder import capture_errors
        from benchmarks.gpu.models import MODELS
        from stretto.convert.make_repository import decoder_config
        from stretto.decoder.worker import open_codec

        setup = server.setup
        family = MODELS[MODEL].read_family(server.setup)
        config = decoder_config(family, json.loads(server.engine.read_text()))
        limit = 0 if setup.is_small else server.needs.tensors >> 20
        config = replace(config, device=setup.device, graphs=not setup.is_small, memory_mb=limit)
        before = setup.free_mib()
        with capture_errors() as errors, starts() as messages:
            codec = open_codec(config, server.checkpoint)
            self._arm = Arm(codec, config)
            self._arm.wait_until_warm()
        after = setup.free_mib()
        self._server = server
        self._frames = family.steady_chunk_frames
        self._rate = codec.spec.frame_rate
        self._is_idle = threading.Event()
        self._error = list[Exception]()
        self._thread = threading.Thread(target=self._decode)
        used = before - after
        budget = server.needs.decoder >> 20
        figures = {"free_before_mib": before, "free_after_mib": after, "used_mib": used, "budget_mib": budget}
        is_right = not errors and used <= budget
        self.figures = {**figures, "started": messages, "capture_errors": errors, "ok": is_right}

    def begin(self) -> dict[str, Any]:
        """Decode steady chunks of all streams, in batches, until `end`."""
        self._thread.start()
        return {}

    def end(self) -> dict[str, Any]:
        """Stop decoding; return the number of streams that it served in real time, and the memory that it holds."""
        self._is_idle.set()
        self._thread.join()
        if self._error:
            return failure(self._error[0])
        wall_s = statistics.median(self._arm.wall_s)
        real_time = round(self._server.streams * self._frames / self._rate / wall_s, 1)
        return {"streams_real_time": real_time, "torch_mib": self._server.setup.torch_mib()}

    def _decode(self) -> None:
        try:
            while not self._is_idle.is_set() or not self._arm.wall_s:
                self._arm.run(self._server.streams, self._frames)
        except Exception as error:
            self._error.append(error)


class Engine:
    """The engine, with the memory that the other processes leave."""

    def __init__(self, server: Server) -> None:
        before = server.setup.free_mib()
        from benchmarks.engines import SteppedEngine
        from benchmarks.gpu.models import MODELS, PromptMaker
        from stretto.config import EngineConfig
        from stretto.engine.host import vllm_config

        config = EngineConfig.from_file(server.engine, server.checkpoint)
        self._engine = SteppedEngine(vllm_config(config))
        self._server = server
        self._model = MODELS[MODEL]
        self._prompts = PromptMaker(self._model.read_family(server.setup))
        cache = self._engine.core.vllm_config.cache_config
        self.figures = {
            "free_before_mib": before,
            "free_after_mib": server.setup.free_mib(),
            "reserved_mb": config.reserved_mb,
            "share": cache.gpu_memory_utilization,
            "kv_blocks": cache.num_gpu_blocks,
        }

    def step(self) -> dict[str, Any]:
        """Run replies of all streams; return the median and the mean step in milliseconds."""
        from benchmarks.gpu.speed import load, time_run

        size = load(self._server.setup)
        number = self._server.streams
        prompts = self._prompts.make(number, self._model.task, self._model.scale, size.frames, size.text_rows)
        self._engine.add_prompts(prompts)
        run = time_run(self._engine, number)
        return {"step_ms": round(run.step_ms, 4), "mean_ms": round(1e3 * run.wall_s / run.steps, 4)}


class Messages(logging.Handler):
    """Log handler that keeps the text of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def starts() -> Iterator[list[str]]:
    """Yield the messages about graphs and batches of decoders that start during the `with` block."""
    handler = Messages()
    logger = logging.getLogger("stretto.decoder.loop")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Process:
    """A decoder or an engine in its own process, which answers one question at a time."""

    def __init__(
        self, served_class: type[Decoder] | type[Engine], server: Server, environment: Mapping[str, str]
    ) -> None:
        self.name = served_class.__name__.lower()
        self._begun = time.perf_counter()
        self._pipe, there = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(there, served_class, server, environment)
        )
        self._process.start()
        there.close()

    @cached_property
    def started(self) -> dict[str, Any]:
        """Figures of the process once it has started, or its error."""
        figures = {"process": self.name, **self._answer(START_S)}
        return figures | {"start_s": round(time.perf_counter() - self._begun, 1)}

    def ask(self, method: str) -> dict[str, Any]:
        """Call a method in the process; return its figures, or an error."""
        with suppress(BrokenPipeError):  # the answer says that the process has ended
            self._pipe.send(method)
        return self._answer(STEPS_S)

    def end(self) -> None:
        """End the process, so that its memory on the GPU is free."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answer(self, limit_s: float) -> dict[str, Any]:
        if not self._pipe.poll(limit_s):
            return failure(TimeoutError(f"{self.name}: no answer within {limit_s:.0f} s"))
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except EOFError:
            return failure(RuntimeError(f"{self.name}: the process has ended"))
        return answer


def _serve(
    pipe: Connection, served_class: type[Decoder] | type[Engine], server: Server, environment: Mapping[str, str]
) -> None:
    """Create a part of the server in this process, send its figures, and answer questions until an error."""
    os.environ.update(environment)
    try:
        created = served_class(server)
        pipe.send(created.figures)
        while True:
            pipe.send(getattr(created, pipe.recv())())
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send(failure(error))


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Start both processes in both orders and under MPS; yield a line for each start and each measurement."""
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            server = pool.submit(write_server, Path(folder), setup).result()
        yield from run_in_turn(server)
        yield from run_under_mps(server, Path(folder))


def run_in_turn(server: Server) -> Iterator[dict[str, Any]]:
    """Start the engine, the decoder beside it, and the engine again beside the decoder."""
    order = {"order": "engine, decoder", "mps": False}
    engine = Process(Engine, server, {})
    yield order | engine.started
    decoder = Process(Decoder, server, {})
    yield order | decoder.started
    for line in measure(engine, decoder):
        yield order | line
    engine.end()
    engine = Process(Engine, server, {})
    yield {"order": "decoder, engine", "mps": False} | engine.started
    engine.end()
    decoder.end()


def run_under_mps(server: Server, folder: Path) -> Iterator[dict[str, Any]]:
    """Start both processes at the same time under NVIDIA's MPS, in the way in which `stretto serve` starts it."""
    launch = Launch("side_by_side", -1, folder)
    launch.folder.mkdir()
    RepositoryOptions(shares_by_mps=True).write(folder)
    try:
        mps.start(folder, launch)
    except LaunchError as error:
        yield {"order": "together", "mps": True, "left_out": str(error)}
        return
    try:
        for priority in ("0", "1"):
            yield from run_together(server, mps.client_environment(launch), priority)
    finally:
        mps.stop(launch)


def run_together(server: Server, environment: Mapping[str, str], priority: str) -> Iterator[dict[str, Any]]:
    """Start both processes as clients of MPS, with a priority of the decoder's kernels (1 is below normal)."""
    order = {"order": "together", "mps": True, "decoder_priority": int(priority)}
    engine = Process(Engine, server, environment)
    decoder = Process(Decoder, server, {**environment, stub.MPS_PRIORITY: priority})
    yield order | engine.started
    started = dict(decoder.started)
    if "error" not in started:  # the engine has changed the free memory, too
        started |= {"used_mib": None, "ok": not started.get("capture_errors")}
    yield order | started
    for line in measure(engine, decoder):
        yield order | line
    engine.end()
    decoder.end()


def measure(engine: Process, decoder: Process) -> Iterator[dict[str, Any]]:
    """Yield the time of a step beside a decoder without work, and beside one that decodes without a pause.

    Yield nothing if a process has not started.
    """
    if "error" in engine.started or "error" in decoder.started:
        return
    engine.ask("step")  # warm-up
    yield {"decoder": "idle", **engine.ask("step")}
    began = decoder.ask("begin")
    line = {"decoder": "busy", **engine.ask("step")}
    yield line | began | decoder.ask("end")
