"""Job that measures a frame of Qwen3-TTS's depth transformer with each kind of products, and its sampling.

A frame is the work of a step after the backbone, replayed as a CUDA graph: the depth transformer's passes, heads and
draws. The kinds are vLLM's products with a launch for each operation (`stock`), ours (`ours`), and ours when each
kernel begins while the previous one ends (`dependent`). The last two must give the same ids, for every number of rows.
`stock` rounds in another order, so the share of its ids that differ is only counted.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state

from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.kernels import draw_params
from benchmarks.gpu.models import MODELS
from stretto.engine.kernels.gpu import depth as layers
from stretto.engine.kernels.gpu import row_products
from stretto.engine.kernels.gpu.depth import DeviceDepth
from stretto.engine.kernels.gpu.draw import draw_on_device
from stretto.engine.models.depth_transformer import DepthTransformer
from stretto.engine.sampling.noise import stream_keys
from stretto.engine.worker import predictors
from stretto.engine.worker.predictors import DepthFrames
from stretto.machine.cuda_graphs import CudaRecorder

ROWS = (1, 16, 64, 256)
TOP_KS = (0, 1, 50, 64, 200)
WARM_UPS = 3
REPEATS = 30
TEMPERATURE = 0.9
TOP_K = 50
WIDTH_OF_BACKBONE = 2048
DTYPE = torch.bfloat16
SPREAD = 0.02  # standard deviation of random weights, as in published configurations


@contextmanager
def products(way: str) -> Iterator[None]:
    """Make depth transformers that are built in the `with` block compute products of one kind (`WAYS`)."""
    with ExitStack() as stack:
        if way == "stock":
            stack.enter_context(patch.object(layers, "product_of", row_products.StockProduct))
            stack.enter_context(patch.object(predictors, "depth_product", predictors.exact_product))
        if way != "dependent":
            stack.enter_context(patch.object(row_products, "launches_early", lambda: False))
            stack.enter_context(patch.object(layers, "launches_early", lambda: False))
        yield


WAYS = ("stock", "ours", "dependent")


class Frame:
    """Depth transformer for hidden states [N, W], whose frame can be captured. `way` is one of `WAYS`."""

    def __init__(self, setup: Setup, depth: Any, family: Any, hidden: torch.Tensor, way: str):
        with products(way):
            self._frames = DepthFrames(DeviceDepth(depth), family.layout, len(hidden))
        self._hidden = hidden
        self._token = torch.full((len(hidden),), family.layout.audio[0].start, device=setup.device)
        self._ids = torch.stack([torch.arange(ids.start, ids.stop) for ids in family.layout.audio[1:]])
        self._ids = self._ids.to(setup.device)
        keys = stream_keys(np.arange(len(hidden), dtype=np.int32), np.zeros(len(hidden), np.int32), len(self._ids))
        self._keys = torch.from_numpy(keys).to(setup.device)
        limits = (TEMPERATURE, torch.float32), (TOP_K, torch.int32), (1.0, torch.float32)
        self._params = draw_params(torch.full((len(hidden),), value, dtype=dtype) for value, dtype in limits)
        self._params = draw_params(
            tensor.to(setup.device) for tensor in (self._params.temperature, self._params.top_k, self._params.top_p)
        )
        self.drawn = torch.zeros(len(hidden), len(self._ids), dtype=torch.int64, device=setup.device)

    def run(self) -> None:
        """Compute a frame into `drawn`."""
        self.drawn.copy_(self._frames(self._hidden, self._token, self._draw))

    def _draw(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        return draw_on_device(logits[:, None], self._ids[streams], self._keys[:, streams], self._params)


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a line for each kind of products and number of rows, then one for each sampling."""
    family = MODELS["qwen3_tts"].read_family(setup)
    dtype = torch.float32 if setup.is_small else DTYPE
    width = 64 if setup.is_small else WIDTH_OF_BACKBONE
    hidden = torch.randn(2 if setup.is_small else max(ROWS), width, generator=torch.Generator().manual_seed(0))
    hidden = hidden.to(setup.device, dtype)
    depth = weights(setup, family, width, dtype)
    with torch.inference_mode():
        yield from frames(setup, depth, family, hidden)
        for top_k in TOP_KS[: 2 if setup.is_small else None]:
            for num_rows in (1, 2) if setup.is_small else ROWS:
                yield {"part": "draw", "top_k": top_k, "rows": num_rows, "ms": draw_ms(setup, num_rows, top_k)}


def frames(setup: Setup, depth: Any, family: Any, hidden: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Yield the time of a frame for each kind of products and number of rows, and whether our ids are correct."""
    expected = dict[int, torch.Tensor]()  # the ids of ours, by number of rows
    for way in WAYS[: 2 if setup.is_small else None]:
        if way == "dependent" and not row_products.launches_early():
            yield {"part": "frame", "way": way, "skipped": "compute capability below 9.0"}
            continue
        for num_rows in sorted({1, len(hidden)} if setup.is_small else ROWS, reverse=True):
            frame = Frame(setup, depth, family, hidden[:num_rows], way)
            milliseconds = time_graph(setup, frame.run)
            drawn = frame.drawn.cpu()
            if way == "ours":
                expected[num_rows] = drawn
            line = {"part": "frame", "way": way, "rows": num_rows, "ms": milliseconds}
            if way == "dependent":
                line["ok"] = torch.equal(drawn, expected[num_rows])
            if way == "ours":
                line["ok"] = torch.equal(drawn, expected[len(hidden)][:num_rows])
            yield line | ({"drawn": drawn[0, :4].tolist()} if num_rows == 1 else {})


def weights(setup: Setup, family: Any, width: int, dtype: torch.dtype) -> Any:
    """Return a depth transformer with random weights, outside an engine."""
    layout = family.layout
    parallel_state._TP = SimpleNamespace(rank_in_group=0, world_size=1)  # type: ignore[assignment]
    with set_current_vllm_config(VllmConfig()), torch.device(setup.device):
        former = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            depth: Any = DepthTransformer(family.depth, [len(ids) for ids in layout.audio], 1, width)
        finally:
            torch.set_default_dtype(former)
    random = torch.Generator(setup.device).manual_seed(1)
    for name, parameter in depth.named_parameters():
        parameter.requires_grad_(False)
        parameter.normal_(std=SPREAD, generator=random).add_("norm" in name)
    for layer in depth.modules():
        if hasattr(layer, "quant_method") and setup.is_small:
            layer.cpu_linear = torch.nn.functional.linear  # vLLM's product on a CPU, before it packs weights
    return depth


def draw_ms(setup: Setup, num_rows: int, top_k: int) -> float:
    """Return the milliseconds of sampling one stream of 2,048 codes."""
    random = torch.Generator().manual_seed(num_rows)
    logits = (3 * torch.randn(num_rows, 1, 2048, generator=random)).to(setup.device)
    ids = torch.arange(2048, device=setup.device)[None]
    keys = torch.arange(num_rows, dtype=torch.int32, device=setup.device)[:, None]
    limits = (TEMPERATURE, torch.float32), (top_k, torch.int32), (1.0, torch.float32)
    params = draw_params(
        torch.full((num_rows,), value, dtype=dtype, device=setup.device) for value, dtype in limits
    )  # fmt: skip
    return time_graph(setup, partial(draw_on_device, logits, ids, keys, params))


def time_graph(setup: Setup, work: Callable[[], Any]) -> float:
    """Return the milliseconds of a replay of `work` as a CUDA graph; 0 in a dry run."""
    work()
    if setup.is_small:
        return 0.0
    graph = CudaRecorder().record(work)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(WARM_UPS):
        graph.replay()
    begin.record()
    for _ in range(REPEATS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return round(begin.elapsed_time(end) / REPEATS, 4)
