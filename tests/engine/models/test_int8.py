"""Linear layers in int8: products equal a slow loop over integers, and replies do not depend on the batch."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from stretto.config import EngineConfig
from stretto.cpu_backend import int8
from stretto.cpu_backend.int8 import LARGEST, Int8Linear, Int8Product, has_int8
from stretto.engine.host import vllm_config
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompts
from stretto.testing.conformance import num_preemptions
from tests import latent_model
from tests.engine.harness import DEFAULTS, Engine
from tests.engine.test_latents import make_prompt as latent_prompt
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.small_vocabularies import CSM, families_with_conditions
from tests.speech_families import EIGHT_STREAMS, MODULES
from tests.tiers import by_night

needs_int8 = pytest.mark.skipif(not has_int8(torch.float32), reason="the processor has no VNNI instructions")


def slow_product(x: torch.Tensor, weight: torch.Tensor) -> list[list[float]]:
    """Return the product [M][N] of quantized x [M, H] and weight [N, H], summed as integers."""
    found: list[list[float]] = []
    for row in x.tolist():
        row_scale = Fraction(max(map(abs, row))) / LARGEST
        numbers = [round(Fraction(each) / row_scale) if row_scale else 0 for each in row]
        found.append([])
        for column in weight.tolist():
            scale = Fraction(max(map(abs, column))) / LARGEST
            total = sum(a * round(Fraction(b) / scale) for a, b in zip(numbers, column, strict=True))
            found[-1].append(float(total * row_scale * scale))
    return found


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
def test_product_equals_a_loop_over_integers() -> None:
    x, weight = random(3, 40), random(8, 40, seed=1)
    x[1] = 0.0
    found, expected = Int8Product(weight)(x), torch.tensor(slow_product(x, weight))
    assert found[1].eq(0).all()
    # Scales are rounded to float32. No number here lies halfway between two integers; a change would be a whole step.
    step = (x.abs().amax(1, keepdim=True) / LARGEST) * weight.abs().amax(1)
    assert ((found - expected).abs() <= 1e-5 + step * 0.01).all()


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "width"), [(320, 256), (1024, 4096)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_row_is_bit_identical_in_every_batch(columns: int, width: int, has_bias: bool, dtype: torch.dtype) -> None:
    multiply = Int8Product(random(columns, width).to(dtype))
    bias = random(columns, seed=2).to(dtype) if has_bias else None
    x = random(40, width, seed=1).to(dtype)
    whole = multiply(x, None, bias)
    for size in (1, 2, 3, 5, 16, 17):
        assert torch.cat([multiply(rows, None, bias) for rows in x.split(size)]).equal(whole), size


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_that_is_not_finite_changes_no_other_row(value: float) -> None:
    multiply, x = Int8Product(random(256, 256)), random(5, 256, seed=1)
    whole = multiply(x)
    x[2, 7] = value
    kept = [0, 1, 3, 4]
    assert multiply(x)[kept].equal(whole[kept])


def codes(family: Family, min_rows: int = 0, num_prompts: int = 8) -> dict[str, Prompt]:
    made = {}
    for name, prompt in make_prompts(family, num_prompts).items():
        audio = replace(prompt.sampling.audio, min_rows=min_rows, max_rows=max(min_rows, 30))
        made[name] = replace(prompt, sampling=replace(prompt.sampling, audio=audio))
    return made


CONDITIONED = families_with_conditions()
RELEASES: dict[str, tuple[Callable[[Path], Path], Callable[[], dict[str, Prompt]]]] = {
    "text and codes": (
        lambda folder: write_checkpoint(folder, EIGHT_STREAMS, "eight_streams"),
        lambda: codes(EIGHT_STREAMS),
    ),
    "depth": (lambda folder: write_checkpoint(folder, CSM, "small_csm"), lambda: codes(CSM, 40, 4)),
    "latents": (
        lambda folder: latent_model.write(folder, 64, 2),
        lambda: {f"r{index}": latent_prompt(index) for index in range(5)},
    ),
    "modules": (lambda folder: write_modules(folder, MODULES, "modules"), lambda: codes(MODULES)),
}
RELEASES |= {
    name: (
        lambda folder, family=family: write_checkpoint(folder, family, family.name, backbone="llama"),
        lambda family=family: codes(family),
    )
    for name, family in CONDITIONED.items()
}


@needs_int8
@pytest.mark.engine
@pytest.mark.parametrize("name", ["latents", *by_night("depth", "text and codes", *CONDITIONED, "modules")])
def test_reply_is_the_same_alone_batched_and_preempted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MIN_WIDTH", 16)  # of small models
    folder, prompts = RELEASES[name][0](tmp_path), RELEASES[name][1]()
    blocks = {"latents": 6, "depth": 12}.get(name, 9)  # little more than one reply
    tight = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 160, "num_gpu_blocks_override": blocks}
    with Engine(folder, int8=True, **tight) as engine:
        layers = [each for each in engine.model_state.model.modules() if hasattr(each, "quant_method")]
        assert any(type(each.quant_method) is Int8Linear for each in layers)
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = engine.run(prompts)
        assert {name: answer.rows for name, answer in together.items()} == alone
        assert num_preemptions(together) > 0
    with Engine(folder, **tight) as engine:
        assert any(engine.run({name: prompt})[name].rows != alone[name] for name, prompt in prompts.items())


@pytest.mark.engine
def test_processor_without_fast_products_keeps_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(int8, "has_int8", lambda dtype: False)
    monkeypatch.setattr(int8, "MIN_WIDTH", 16)
    folder, prompts = write_checkpoint(tmp_path, EIGHT_STREAMS, "eight_streams"), codes(EIGHT_STREAMS)
    replies = []
    for is_int8 in (False, True):
        with Engine(folder, int8=is_int8) as engine:
            replies.append({name: answer.rows for name, answer in engine.run(prompts).items()})
    assert replies[0] == replies[1]
    assert "no VNNI" in caplog.text


@pytest.mark.engine
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enforce_eager": False}, "int8: expected false unless enforce_eager is true"),
        ({"load_format": "dummy"}, "int8: expected false with load_format 'dummy'"),
        (
            {"quantization": "fp8_per_channel", "dtype": "bfloat16"},
            "int8: expected false with quantization 'fp8_per_channel'",
        ),
    ],
)
def test_options_that_exclude_int8(tmp_path: Path, options: dict[str, object], message: str) -> None:
    folder = write_checkpoint(tmp_path, EIGHT_STREAMS, "eight_streams")
    with pytest.raises(ValueError, match=message):
        vllm_config(EngineConfig(folder, {**DEFAULTS, **options}, int8=True))
