"""Count the device operators of depth transformers and MCTP modules in the configuration of a GPU server.

It also checks the CUDA graphs and the FP8 products that vLLM chooses for what `make-repository --gpu` writes, and that
the memory of a decoder can be computed for all kinds of convolutions.

    LD_LIBRARY_PATH=STUBS PYTORCH_NVML_BASED_CUDA_CHECK=1 python -m tests.engine.kernels.gpu.deployed

It needs the CUDA builds of torch and vLLM but no GPU: tensors are in host memory, fused operators do nothing there,
and `STUBS` holds stand-ins for the driver's libraries (scripts/cuda_without_gpu.sh). Prints JSON: operators per pass in
torch (`reference`) and as served.
"""

# ruff: noqa: E402  (vLLM reads the environment on import)
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from stretto.engine.environment import prepare_environment

prepare_environment()

import torch
from vllm.config import CUDAGraphMode, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.ir.op import set_default_torch_wrap
from vllm.model_executor.kernels.linear import CutlassFP8ScaledMMLinearKernel, fp8_scaled_mm_is_batch_invariant
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
from vllm.platforms import current_platform

from benchmarks.gpu.__main__ import preload
from benchmarks.gpu.jobs import JOBS, QUARTER, Setup
from benchmarks.gpu.models import MODELS, QWEN3_TTS_1B7, Model, engine_args, write_config
from lab.releases.every_codec import every_codec
from stretto.config import DecoderConfig, EngineConfig
from stretto.convert.profiles import engine_arguments, quantization
from stretto.decoder.memory import measure
from stretto.engine.host import vllm_config
from stretto.engine.kernels.gpu import depth as attention
from stretto.engine.kernels.gpu import row_products
from stretto.engine.kernels.gpu.depth import DeviceDepth
from stretto.engine.kernels.gpu.products import fp8_product, use_fused_operators
from stretto.engine.models.depth_transformer import DepthTransformer
from stretto.engine.models.multi_stream import check_quantization
from stretto.family.plugin import config_at
from tests.engine.kernels.gpu.operators import Count, Launches
from tests.engine.plain_depth import PlainDepth

# The launches of a layer do not depend on its width.
VITA = Model("vita_audio", QWEN3_TTS_1B7 | {"model_type": "qwen2"}, 1.0, "dialogue")
FUSED = ("rms_norm", "fused_add_rms_norm", "silu_and_mul", "rotary_embedding")


def deployed(model: Model, folder: Path) -> Any:
    """Return vLLM's configuration for a model, with the defaults that `make-repository --gpu` leaves."""
    setup = Setup("cuda", folder)
    arguments = engine_args(setup, model, (1, 16))
    arguments.pop("compilation_config", None)
    return vllm_config(EngineConfig(write_config(folder, model, setup), arguments))


def depth_operators(folder: Path) -> dict[str, Any]:
    """Return the operators of one pass through the depth transformer of Qwen3-TTS."""
    config, launches = deployed(MODELS["qwen3_tts"], folder), Launches()
    spec = MODELS["qwen3_tts"].read_family(Setup("cuda", folder)).depth
    assert spec is not None
    attention.depth_attention_kernel = launches
    row_products.row_product_kernel = launches
    found: dict[str, Any] = {"mode": int(config.compilation_config.mode), "layers": spec.num_layers}
    with set_current_vllm_config(config):
        depth, code = DepthTransformer(spec, [2048] * 16, 1, 2048), torch.zeros(1, dtype=torch.int32)
        for name, each in {"reference": PlainDepth(depth), "served": DeviceDepth(depth)}.items():
            each.prepare(4)
            launches.count = 0
            with Count() as counted:
                each.next(code, 5)
            found[name] = counted.operators.total() + launches.count
    return found


def module_operators(folder: Path) -> dict[str, Any]:
    """Return the operators of an MCTP module's layer, excluding attention."""
    config, found = deployed(VITA, folder), dict[str, Any]()
    Attention.forward = lambda self, query, key, value, *args, **kwargs: query
    hf_config: Any = config.model_config.hf_config
    with set_current_vllm_config(config):
        layer = Qwen2DecoderLayer(hf_config, config.cache_config, None, prefix="model.layers.0")
        for name in ("reference", "served"):
            if name == "served":
                use_fused_operators(layer)
            with Count() as counted:
                layer(torch.zeros(4, dtype=torch.int64), torch.zeros(4, hf_config.hidden_size), None)
            found[name] = counted.operators.total() - 2  # the inputs
    return found


def check_repository(folder: Path) -> None:
    """Check vLLM's choices for `make-repository --gpu 0 --quantize fp8`, on a GPU of compute capability 9.0."""
    setup, model = Setup("cuda", folder), MODELS["qwen3_tts"]
    checkpoint, family = write_config(folder, model, setup), model.read_family(setup)
    arguments = engine_arguments(config_at(checkpoint), family, is_on_gpu=True)
    arguments |= quantization(config_at(checkpoint), "fp8", arguments["dtype"])
    config = vllm_config(EngineConfig(checkpoint, arguments, max_waiting=arguments.pop("max_waiting")))
    graphs = config.compilation_config
    assert config.scheduler_config.max_num_seqs == 256
    assert graphs.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE  # full for steps of frames, piecewise with prompts
    assert graphs.max_cudagraph_capture_size == 512
    assert family.depth is not None
    with set_current_vllm_config(config):
        depth = DepthTransformer(family.depth, [2048] * 16, 1, 2048, quant_config=config.quant_config)
        check_quantization(depth)
        DeviceDepth(depth)
        layers = [each for each in depth.modules() if isinstance(each, LinearBase)]
        assert len(layers) == 4 * family.depth.num_layers + (family.depth.projection is not None)
        for layer in layers:
            product = fp8_product(layer)
            assert isinstance(product, CutlassFP8ScaledMMLinearKernel)
            assert fp8_scaled_mm_is_batch_invariant(product)
            assert product.quant_fp8._forward_method == product.quant_fp8.forward_cuda  # one kernel


def check_convolutions() -> None:
    """Compute the memory of decoders with convolutions on tensor cores, as `make-repository --convolutions` does."""
    for convolutions in DecoderConfig.CONVOLUTIONS:
        codec = every_codec("qwen3_12hz", is_narrow=True)
        measure(codec, DecoderConfig(device="cuda", convolutions=convolutions))


def load_jobs() -> None:
    """Load all benchmark jobs from the installed packages, as their parent does before it forks."""
    preload(is_small=False)
    for job in (*JOBS.values(), *QUARTER.values()):
        job.load()
    for model in MODELS.values():
        with tempfile.TemporaryDirectory() as folder:
            deployed(model, Path(folder))
    assert not torch.cuda.is_initialized(), "jobs cannot fork, because an import has initialised CUDA"


def main() -> None:
    """Print the counts."""
    assert current_platform.is_cuda(), "this vLLM is not built for CUDA"
    load_jobs()
    check_convolutions()
    parallel_state._TP = SimpleNamespace(rank_in_group=0, world_size=1)  # type: ignore[assignment]
    library = torch.library.Library("_C", "FRAGMENT")
    for operator in FUSED:
        library.impl(operator, lambda *args: None, "CPU")
    torch._dynamo.config.disable = True
    set_default_torch_wrap(False)  # count what vLLM's own operators consist of
    torch.set_default_dtype(torch.bfloat16)
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        check_repository(Path(folder))
    with torch.inference_mode():
        for name, count in {"qwen3_tts": depth_operators, "vita": module_operators}.items():
            with tempfile.TemporaryDirectory() as folder:
                counts[name] = count(Path(folder))
    print(json.dumps(counts))
    depth, module = counts["qwen3_tts"], counts["vita"]
    assert depth["served"] <= 5 * depth["layers"] + 2, depth
    assert module["served"] <= 8, module


if __name__ == "__main__":
    main()
