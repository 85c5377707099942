"""Quantized weights with vLLM's methods: names, shapes, logits, and rejected checkpoints.

vLLM's products for FP8 run here as they are. Its products for 4 bits need more than AVX2, so `SlowProduct`, which vLLM
chooses as it would one of its own, multiplies with the dequantized weights. All of it is in bfloat16, with a depth
transformer.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm.model_executor.kernels import linear as products
from vllm.model_executor.kernels.linear.mixed_precision import MPLinearKernel
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kFp8DynamicTokenSym,
    unpack_quantized_values_into_int32,
)
from vllm.platforms import PlatformEnum

from stretto.convert.profiles import QUANTIZATIONS
from stretto.engine.worker.predictors import Readout
from stretto.errors import CheckpointError
from stretto.families.qwen3_tts.family import qwen3_tts
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from tests.engine.harness import Engine
from tests.engine.recorded_logits import RecordedLogits
from tests.random_checkpoints import write_modules
from tests.small_vocabularies import SMALL_QWEN3_TTS
from tests.speech_families import MODULES
from tests.tiers import by_night

pytestmark = pytest.mark.engine
GROUP = 32
SPEC = replace(SMALL_QWEN3_TTS.depth, hidden=64, intermediate=96, head_dim=32)  # widths that are multiples of GROUP
VOCABULARY = replace(SMALL_QWEN3_TTS, depth=SPEC)
FAMILY = qwen3_tts(VOCABULARY)
LARGEST_FP8 = 448.0
# Few rows, because oneDNN's FP8 product with float32 sums takes 30 ns for each multiplication on CPUs.
FP8_ROWS, FP8_PROMPTS = 2, (0, 5)
SHORT_PROMPTS = (0, 1, 4, 5, 8, 9, 12, 13)  # 5 or 17 rows
Tensors = dict[str, Tensor]
Quantized = Callable[[str], tuple[Path, Path]]
LAYER = "model.layers.0.self_attn."


class SlowProduct(MPLinearKernel):
    """Product with the dequantized weights of any 4-bit format."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        packed, scales, zeros = self._get_weight_params(layer)
        values = unpack_quantized_values_into_int32(packed.data, self.config.weight_type, packed.packed_dim)
        values = values.T if packed.input_dim == 1 else values
        scales = scales.T if scales.output_dim == 0 else scales
        offset: Any = self.config.weight_type.bias
        if self.config.zero_points:
            offset = unpack_quantized_values_into_int32(zeros.data, self.config.weight_type, zeros.packed_dim)
            offset = (offset.T if zeros.output_dim == 0 else offset).repeat_interleave(self.config.group_size, 0)
        wide = (values - offset) * scales.float().repeat_interleave(self.config.group_size, 0)
        layer.dense = wide.T.to(scales.dtype).contiguous()

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, layer.dense, bias)


class SlowMethod(UnquantizedLinearMethod):
    """Slow FP8 reference: weights scaled per output and inputs per row, both rounded, and multiplied in float32."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.rounded = rounded_to_fp8(layer.weight.float())

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        product = F.linear(rounded_to_fp8(x.float()), layer.rounded)
        return (product if bias is None else product + bias).to(x.dtype)


def rounded_to_fp8(x: Tensor) -> Tensor:
    """Round [N, M] to FP8 with a scale for each row; return float32."""
    scale = x.abs().amax(-1, keepdim=True) / LARGEST_FP8
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


@register_quantization_config("slow_fp8")
class SlowFp8(QuantizationConfig):
    """vLLM's interface to `SlowMethod`."""

    def get_name(self) -> Any:
        return "slow_fp8"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SlowFp8":
        return cls()

    def get_quant_method(self, layer: Any, prefix: str) -> SlowMethod | None:
        return SlowMethod() if isinstance(layer, LinearBase) else None


@pytest.fixture(autouse=True)
def slow_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products._POSSIBLE_KERNELS, PlatformEnum.CPU, [SlowProduct])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bfloat16 checkpoint without quantization."""
    return write_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def quantized(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Write each format that tests ask for once; return its folder and that of the same weights in bfloat16."""
    return cache(lambda name: write_quantized(plain, tmp_path_factory.mktemp(name), name))


@pytest.fixture(scope="module")
def plain_logits(plain: Path) -> "Logits":
    """Return the logits of the checkpoint without quantization."""
    return logits(plain)


def write_plain(folder: Path) -> Path:
    write_checkpoint(folder, FAMILY, "qwen3_tts", layers=2, vocabulary=VOCABULARY.to_record())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():  # as in a trained model, a layer changes its input by little
        tensor *= 0.25 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
    return written(folder, folder, {name: each.bfloat16() for name, each in tensors.items()}, {})


def written(source: Path, folder: Path, tensors: Tensors, record: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    if record:
        config["quantization_config"] = record
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / "model.safetensors")
    return folder


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight") or name == "depth.project.weight"


def by_group(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a weight [N, K] to integers from 0 to 15 [K, N], with group zeros and scales [K / GROUP, N]."""
    groups = weight.float().T.unflatten(0, (-1, GROUP))
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).bfloat16()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    values = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    return values.flatten(0, 1).int(), zeros.int(), scales


def symmetric(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight [N, K] to integers from 0 to 15 [K, N], where 8 means zero, with scales [K / GROUP, N]."""
    groups = weight.float().T.unflatten(0, (-1, GROUP))
    scales = (groups.abs().amax(1) / 7).bfloat16()
    return ((groups / scales.float()[:, None]).round().clamp(-8, 7) + 8).flatten(0, 1).int(), scales


def packed(values: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack 4-bit integers into int32, eight neighbours along `dim` each, the first in the lowest bits."""
    parts = values.movedim(dim, -1).unflatten(-1, (-1, 8)).long()[..., list(order)]
    words = (parts << (4 * torch.arange(8))).sum(-1)
    return (words - ((words >> 31) << 32)).int().movedim(-1, dim)


def wide(values: Tensor, zeros: Tensor | float, scales: Tensor) -> Tensor:
    """Return the bfloat16 weight [N, K] that the integers represent."""
    zeros = zeros.repeat_interleave(GROUP, 0) if isinstance(zeros, Tensor) else zeros
    return ((values - zeros) * scales.float().repeat_interleave(GROUP, 0)).T.bfloat16()


def awq(weight: Tensor) -> tuple[Tensors, Tensor]:
    values, zeros, scales = by_group(weight)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    stored = {"qweight": packed(values, 1, order), "qzeros": packed(zeros, 1, order), "scales": scales}
    return stored, wide(values, zeros, scales)


def gptq(weight: Tensor) -> tuple[Tensors, Tensor]:
    values, scales = symmetric(weight)
    zeros = packed(torch.full_like(scales, 7, dtype=torch.int32), 1)  # the format stores zeros less one
    indices = torch.arange(len(values), dtype=torch.int32) // GROUP
    return {"qweight": packed(values, 0), "qzeros": zeros, "scales": scales, "g_idx": indices}, wide(values, 8, scales)


def pack_quantized(weight: Tensor) -> tuple[Tensors, Tensor]:
    values, scales = symmetric(weight)
    stored = {
        "weight_packed": packed(values.T, 1),
        "weight_scale": scales.T,
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    return stored, wide(values, 8, scales)


def float_quantized(weight: Tensor) -> tuple[Tensors, Tensor]:
    scale = (weight.float().abs().amax(1, keepdim=True) / LARGEST_FP8).bfloat16()
    values = (weight.float() / scale.float()).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale}, (values.float() * scale.float()).bfloat16()


def compressed(kind: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
# By the name of the format: `quantization_config` and what becomes of a weight.
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], tuple[Tensors, Tensor]]]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}, gptq),
    "pack-quantized": (compressed("pack-quantized", INT4, None), pack_quantized),
    "float-quantized": (
        compressed("float-quantized", FP8 | {"strategy": "channel"}, FP8 | {"strategy": "token", "dynamic": True}),
        float_quantized,
    ),
}


def write_quantized(plain: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a checkpoint in a format and one with the same weights in bfloat16; return their folders."""
    record, convert = FORMATS[name]
    stored, wide_ones = Tensors(), Tensors()
    for key, tensor in load_file(plain / "model.safetensors").items():
        if is_linear(key):
            parts, wide_ones[key] = convert(tensor)
            stored |= {f"{key.removesuffix('.weight')}.{kind}": part for kind, part in parts.items()}
        else:
            stored[key] = wide_ones[key] = tensor
    return written(plain, folder / "quantized", stored, record), written(plain, folder / "wide", wide_ones, {})


def short_prompt(family: Family, index: int, num_rows: int) -> Prompt:
    """Return test prompt number `index`, whose segments of the reply have at most `num_rows` rows each."""
    prompt = make_prompt(family, index)
    text, audio = (
        replace(each, min_rows=min(each.min_rows, num_rows), max_rows=num_rows)
        for each in (prompt.sampling.text, prompt.sampling.audio)
    )
    return replace(prompt, sampling=replace(prompt.sampling, text=text, audio=audio))


def open_engine(folder: Path, **options: Any) -> Engine:
    return Engine(folder, dtype="bfloat16", max_model_len=128, **options)


@dataclass(frozen=True)
class Logits:
    """Logits of the first frame after each of several prompts, one prompt after another.

    Attributes:
        codes: Codes of stream 0.
        first: Logits of stream 0, [prompts, codes].
        second: Logits of stream 1, which the depth transformer predicts from the code of stream 0, [prompts, codes].
    """

    codes: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def difference(self, other: "Logits") -> float:
        """Return the rms difference from `other`, relative to the rms of `other`, over equal inputs."""
        is_same = self.codes == other.codes
        assert is_same.sum() > len(is_same) // 2
        ours, theirs = (np.hstack([each.first[is_same], each.second[is_same]]) for each in (self, other))
        return float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))


def logits(folder: Path, **options: Any) -> Logits:
    """Return an engine's logits; all its linear layers have the same method."""
    codes, first, second = list[int](), list[np.ndarray](), list[np.ndarray]()
    with open_engine(folder, **options) as engine:
        assert len(set(methods_of(engine).values())) == 1
        sampler = engine.core.model_executor.driver_worker.worker.model_runner.sampler
        readout = Readout(sampler._draw.heads, sampler._draw.frames)
        for index in SHORT_PROMPTS:
            with pytest.MonkeyPatch.context() as patch:
                recorded = RecordedLogits(readout, patch)
                prompt = short_prompt(FAMILY, index, 1)
                codes.append(engine.run({"one": prompt})["one"].rows[0][0])
            first.append(recorded.first[0].astype(np.float64))
            second.append(recorded.others[0].astype(np.float64))
    return Logits(np.array(codes), np.array(first), np.array(second))


def methods_of(engine: Engine) -> dict[str, str]:
    """Return the quantization method of every linear layer by name."""
    model = engine.model_state.model
    found = {name: each.quant_method for name, each in model.named_modules() if isinstance(each, LinearBase)}
    return {name: type(method).__name__ for name, method in found.items()}


def test_fp8_layers_match_the_reference_and_are_batch_invariant(plain: Path) -> None:
    """A row of large numbers leaves the other rows of the batch bit-identical."""
    random = torch.Generator().manual_seed(0)
    with open_engine(plain, **QUANTIZATIONS["fp8"]) as engine:
        model, stored = engine.model_state.model, load_file(plain / "model.safetensors")
        methods = methods_of(engine)
        assert {name.partition(".")[0] for name in methods} == {"model", "depth"}
        assert set(methods.values()) == {"Fp8PtpcOnlineLinearMethod"}
        for name in ("model.layers.1.self_attn.o_proj", "depth.layers.1.down_proj", "depth.project"):
            layer = model.get_submodule(name)
            assert layer.quant_method.activation_quant_key == kFp8DynamicTokenSym
            x = torch.randn(7, layer.input_size, generator=random).bfloat16()
            product = partial(layer.quant_method.apply, layer, bias=layer.bias)
            ours = product(x)
            expected = F.linear(rounded_to_fp8(x.float()), rounded_to_fp8(stored[f"{name}.weight"].float()))
            expected = expected if layer.bias is None else expected + layer.bias
            assert (ours - expected).norm() <= 0.01 * expected.norm(), name
            x[1:] *= 100
            assert torch.equal(product(x)[0], ours[0]), name
            assert torch.equal(product(x[:1])[0], ours[0]), name


@pytest.mark.nightly  # by day single layers, above
def test_fp8_logits_are_close_to_the_reference_and_to_bfloat16(
    plain: Path, plain_logits: Logits, record_property: Callable[[str, float], None]
) -> None:
    """Rounding to 3 bits amplifies one-bit differences in bfloat16, so the references agree only to 10 %."""
    fp8, slow = (logits(plain, quantization=name) for name in ("fp8_per_channel", "slow_fp8"))
    found = {"slow": fp8.difference(slow), "bfloat16": fp8.difference(plain_logits)}
    record_property("differences", str(found))
    assert 0 < found["slow"] <= 0.1
    assert found["slow"] < found["bfloat16"] <= 0.2


@pytest.mark.nightly  # by day the replies of modules below, and these layers alone above
def test_fp8_replies_do_not_depend_on_the_batch(plain: Path) -> None:
    prompts = {f"r{index}": short_prompt(FAMILY, index, FP8_ROWS) for index in FP8_PROMPTS}
    with open_engine(plain, quantization="fp8_per_channel", max_num_batched_tokens=24) as engine:
        together = engine.run(prompts)
        for name, prompt in prompts.items():
            assert engine.run({name: prompt})[name].rows == together[name].rows, name


def test_mctp_modules_are_quantized(tmp_path: Path) -> None:
    prompts = {f"r{index}": short_prompt(MODULES, index, FP8_ROWS) for index in FP8_PROMPTS}
    folder = write_modules(tmp_path, MODULES, MODULES.name, hidden=64)
    with open_engine(folder, **QUANTIZATIONS["fp8"]) as engine:
        methods = methods_of(engine)
        assert {name.partition(".")[0] for name in methods} == {"model", "mtp_projs"}
        assert set(methods.values()) == {"Fp8PtpcOnlineLinearMethod"}
        together = engine.run(prompts)
        for name, prompt in prompts.items():
            assert engine.run({name: prompt})[name].rows == together[name].rows, name


@pytest.mark.parametrize(("name", "bound"), [("awq", 0.3), *by_night(("gptq", 0.4), ("pack-quantized", 0.4))])
def test_4_bit_checkpoint_matches_its_dequantized_weights(
    name: str,
    bound: float,
    quantized: Quantized,
    plain_logits: Logits,
    record_property: Callable[[str, float], None],
) -> None:
    """Logits are equal to those of the dequantized weights, and near those of the weights before."""
    folder, dequantized = quantized(name)
    ours = logits(folder)
    assert ours.difference(logits(dequantized)) == 0
    found = ours.difference(plain_logits)
    record_property("difference", found)
    assert 0 < found <= bound


@pytest.mark.nightly
def test_fp8_checkpoint_logits_are_near_its_dequantized_weights(quantized: Quantized) -> None:
    """The format is that of llm-compressor's recipe FP8_DYNAMIC, with vLLM's own product."""
    folder, dequantized = quantized("float-quantized")
    assert 0 < logits(folder).difference(logits(dequantized)) <= 0.15


def test_depth_transformer_may_be_left_unquantized(plain: Path, quantized: Quantized, tmp_path: Path) -> None:
    """AWQ lists no layers here; layers without `qweight` are not quantized."""
    folder, _ = quantized("awq")
    stored, before = load_file(folder / "model.safetensors"), load_file(plain / "model.safetensors")
    kept = {name: each for name, each in stored.items() if not name.startswith("depth.")}
    kept |= {name: each for name, each in before.items() if name.startswith("depth.")}
    with open_engine(written(plain, tmp_path / "kept", kept, FORMATS["awq"][0])) as engine:
        for name, method in methods_of(engine).items():
            expected = "UnquantizedLinearMethod" if name.startswith("depth.") else "AutoAWQMarlinLinearMethod"
            assert method == expected, name


DEPTH = "depth.layers.0."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{LAYER}k_proj.scales"), rf"lacks {LAYER}k_proj\.scales$"),
        (lambda tensors: tensors.pop(f"{DEPTH}up_proj.qweight"), rf"lacks {DEPTH}up_proj\.qweight$"),
        (lambda tensors: tensors.update({f"{DEPTH}q_proj.zeros": torch.zeros(2)}), r"unknown tensor depth\.layers\.0"),
        (
            lambda tensors: tensors.update({f"{LAYER}o_proj.qweight": torch.zeros(3, 16, dtype=torch.int32)}),
            rf"{LAYER}o_proj\.qweight: shape \[3, 16\] does not match",
        ),
        *by_night(
            (lambda tensors: tensors.pop(f"{LAYER}o_proj.qzeros"), rf"lacks {LAYER}o_proj\.qzeros$"),
            (lambda tensors: tensors.pop(f"{DEPTH}down_proj.scales"), rf"lacks {DEPTH}down_proj\.scales$"),
        ),
    ],
)
def test_mismatched_quantized_tensor_is_named(
    change: Callable[[Tensors], object], message: str, plain: Path, quantized: Quantized, tmp_path: Path
) -> None:
    folder, _ = quantized("awq")
    stored = load_file(folder / "model.safetensors")
    change(stored)
    with pytest.raises((ValueError, CheckpointError), match=message):
        open_engine(written(plain, tmp_path / "changed", stored, FORMATS["awq"][0]))


def test_missing_tensor_is_reported_with_on_the_fly_quantization(plain: Path, tmp_path: Path) -> None:
    stored = load_file(plain / "model.safetensors")
    for name in (f"{LAYER}o_proj.weight", f"{DEPTH}v_proj.weight"):
        del stored[name]
    with pytest.raises(CheckpointError, match=rf"lacks {DEPTH}v_proj\.weight, {LAYER}o_proj\.weight$"):
        open_engine(written(plain, tmp_path / "changed", stored, {}), quantization="fp8_per_channel")


def test_batch_wide_fp8_scales_are_refused(plain: Path, tmp_path: Path) -> None:
    """vLLM's CPU build has no product with per-row scales for these two formats."""
    expected = "qkv_proj: expected one scale for each row of the input"
    with pytest.raises(CheckpointError, match=expected):
        open_engine(plain, quantization="fp8_per_tensor")
    record = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    with pytest.raises(CheckpointError, match=expected):
        open_engine(written(plain, tmp_path / "dynamic", load_file(plain / "model.safetensors"), record))


def test_quantized_output_head_is_refused(tmp_path: Path) -> None:
    """`StreamHeads` reads the head as a table."""
    folder = write_checkpoint(tmp_path, TINY, "tiny", layers=1)
    stored = load_file(folder / "model.safetensors")
    parts, _ = awq(stored.pop("lm_head.weight")[:512])
    stored |= {f"lm_head.{kind}": part for kind, part in parts.items()}
    with pytest.raises(CheckpointError, match=r"quantization: lm_head: expected unquantized weights, got AutoAWQ"):
        open_engine(written(folder, folder, stored, FORMATS["awq"][0] | {"lm_head": True}))
