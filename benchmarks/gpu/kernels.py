"""Job that compares Stretto's GPU kernels, and the sampler made of them, with the CPU, and measures their speed."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu.jobs import Setup, failure
from stretto.engine.kernels.draw import draw
from stretto.engine.kernels.gpu.products import Float32Product, embed_rows
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.sampling.guidance import guide
from stretto.engine.sampling.noise import gaussian, stream_keys
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto.family.base import Family
from stretto.family.plugin import plugin
from stretto.machine.cuda_graphs import CudaRecorder

# (streams, columns) of the published 8B model: codes of its streams, stream 0 in audio, and text.
DRAWS = {"codes": (8, 1025), "first": (1, 1026), "text": (1, 152_192)}
SAMPLINGS = {"greedy": (0.0, 0, 1.0), "top_k": (0.8, 20, 1.0), "top_p": (0.8, 0, 0.95)}
WIDTH = 4096
VOCABULARY = 160_392
PAD = 0
SCALE = 3.0
# Small families with parallel heads, with a depth transformer, with separate heads, with functions of their own in the
# kernels, and with latents.
SPEECH = "grouped", "latents", "guided_latents"
OWN = "small_turbo", "small_fish_s2", "small_moss_tts", "small_moss_tts_realtime", "small_kyutai_tts_ahead"
CORE = "small_bagpiper", "small_opuslm", "small_tracked_csm", "small_qwen3_tts"
SAMPLERS = *CORE, "small_higgs_audio", *OWN, *SPEECH, "tiny"
ROUNDED = 2e-3  # error bound for guided logits near 1: float32 products stay well below it, bfloat16 products exceed it


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a result line for each kernel and size."""
    rows = (1, 2) if setup.is_small else (1, 32, 64)
    for draw_name, sampling in ((draw_name, sampling) for draw_name in DRAWS for sampling in SAMPLINGS):
        for num_rows in rows:
            figures = _attempt(partial(_draw, setup, draw_name, sampling, num_rows))
            yield {"kernel": "draw", "of": draw_name, "sampling": sampling, "rows": num_rows, **figures}
    for num_rows in rows:
        yield {"kernel": "embed", "rows": num_rows, **_attempt(partial(_embed, setup, num_rows))}
    yield {"kernel": "noise", **_attempt(partial(_noise, setup))}
    for name in SAMPLERS:
        yield {"kernel": "sampler", "family": name, **_attempt(partial(_sampler, setup, name))}
    for columns in (1026,) if setup.is_small else (1026, 8200, 152_192):
        yield {"kernel": "head", "columns": columns, **_attempt(partial(_head, setup, columns))}


def _attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except torch.AcceleratorError:  # the device is unusable after this error
        raise
    except Exception as error:
        return failure(error)


def _ms(setup: Setup, step: Callable[[], Any]) -> float:
    """Return the milliseconds of a call on the device. Calls are queued, so launch overhead is not counted."""
    number = 1 if setup.is_small else 50
    step()
    _wait(setup)
    begun = time.perf_counter()
    for _ in range(number):
        step()
    _wait(setup)
    return round(1e3 * (time.perf_counter() - begun) / number, 4)


def _wait(setup: Setup) -> None:
    if not setup.is_small:
        torch.cuda.synchronize()


def draw_params(parameters: Iterable[torch.Tensor]) -> DrawParams:
    temperature, top_k, top_p = parameters
    return DrawParams(temperature, top_k, top_p)


def _draw(setup: Setup, draw_name: str, sampling: str, num_rows: int) -> dict[str, Any]:
    num_streams, num_columns = DRAWS[draw_name]
    random = np.random.default_rng(num_rows)
    logits = torch.from_numpy(3 * random.standard_normal((num_rows, num_streams, num_columns)).astype(np.float32))
    seeds, positions = (random.integers(0, 1 << 20, num_rows).astype(np.int32) for _ in range(2))
    keys = torch.from_numpy(stream_keys(seeds, positions, num_streams))
    ids = 100 + torch.arange(num_streams * num_columns).view(num_streams, num_columns)
    temperature, top_k, top_p = (np.full(num_rows, value) for value in SAMPLINGS[sampling])
    arrays = temperature.astype(np.float32), top_k.astype(np.int32), top_p.astype(np.float32)
    plan = DrawPlan.from_parameters(arrays[0], arrays[2])
    params = draw_params(map(torch.from_numpy, arrays))
    expected = draw(logits, ids, keys, params, plan)
    there = logits.to(setup.device), ids.to(setup.device), keys.to(setup.device)
    params_there = draw_params(
        parameter.to(setup.device) for parameter in (params.temperature, params.top_k, params.top_p)
    )
    drawn = draw(*there, params_there, plan).cpu()
    different = int((drawn != expected).sum())
    number = expected.numel()
    # Logarithms on device and host differ in the last bit, which rarely changes a sampled id.
    is_right = different <= number / 100 if sampling != "greedy" else different == 0
    return {
        "different": different,
        "draws": number,
        "ms": _ms(setup, lambda: draw(*there, params_there, plan)),
        "ok": is_right,
    }


def _embed(setup: Setup, num_rows: int) -> dict[str, Any]:
    width, vocabulary = (64, 500) if setup.is_small else (WIDTH, VOCABULARY)
    random = torch.Generator().manual_seed(num_rows)
    table = torch.randn(vocabulary, width, generator=random).bfloat16()
    ids = torch.randint(0, vocabulary, (num_rows, 8), generator=random)
    ids[:, -1] = PAD
    expected = embed_rows(table, ids, PAD, True)
    table_there = table.to(setup.device)
    ids_there = ids.to(setup.device)
    embedded = embed_rows(table_there, ids_there, PAD, True).cpu()
    difference = float((embedded.float() - expected.float()).abs().max())
    ms = _ms(setup, lambda: embed_rows(table_there, ids_there, PAD, True))
    return {"max_difference": difference, "ms": ms, "ok": difference <= 2**-4}  # spacing of bfloat16 values above 8


def _noise(setup: Setup) -> dict[str, Any]:
    """Compare the Gaussian noise for a step's latents with numpy. Differences in float64 rarely survive rounding."""
    number = 1 << (12 if setup.is_small else 20)
    keys = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, number).astype(np.int32)
    test = import_module("tests.engine.kernels.gpu.test_latent_noise")
    there = torch.from_numpy(keys).to(setup.device)
    noise = test.noise_of(there)
    different = int((noise.cpu().numpy() != gaussian(keys)).sum())
    ms = _ms(setup, lambda: test.noise_of(there))
    return {"different": different, "draws": number, "ms": ms, "ok": different <= max(2, number >> 19)}


def family_of(name: str) -> Family:
    registered = plugin(name)
    assert registered is not None, name
    return registered.build(None)


def _sampler(setup: Setup, name: str) -> dict[str, Any]:
    """Compare the GPU sampler, with graphs, with the CPU sampler, row by row over complete replies."""
    walks = import_module("tests.engine.worker.walks")
    family = family_of(name)
    rules = SegmentRules(family, walks.LENGTH)
    num_slots = 5
    steps = 2 if setup.is_small else 48
    recorder = None if setup.is_small else CudaRecorder()
    ours = walks.captured(rules, num_slots, recorder, torch.device(setup.device))
    walk = walks.Walk(family, [ours, walks.reference(rules, num_slots)], seed=1)
    for step in range(steps):
        results = walk.step()
        if not all(torch.equal(mine.long(), expected.long()) for mine, expected in zip(*results, strict=True)):
            return {"steps": step, "ok": False}
    return {"steps": steps, "ok": True}


def _head(setup: Setup, num_columns: int) -> dict[str, Any]:
    """Measure time and error of the logits of 32 guided rows, in bfloat16 and float32, against float64."""
    width, num_rows = (64, 2) if setup.is_small else (WIDTH, 32)
    random = torch.Generator(setup.device).manual_seed(0)
    hidden = torch.randn(2 * num_rows, width, device=setup.device, generator=random).bfloat16()
    weight = torch.randn(num_columns, width, device=setup.device, generator=random).div_(width**0.5).bfloat16()
    scale = torch.full((num_rows, 1), SCALE, device=setup.device)

    def guided(logits: torch.Tensor) -> torch.Tensor:
        return guide(logits[:num_rows], logits[num_rows:], scale)

    head = Float32Product(weight.float() if setup.is_small else weight)  # mixed types need CUDA
    x = hidden.float() if setup.is_small else hidden

    def kept() -> torch.Tensor:
        return head(x)

    def rounded() -> torch.Tensor:
        return F.linear(hidden, weight)

    exact = guided(F.linear(hidden.double(), weight.double()))
    products = {"bfloat16": rounded, "float32": kept}
    errors = {
        f"{name}_error": float((guided(product().float()).double() - exact).abs().max())
        for name, product in products.items()
    }
    times = {f"{name}_ms": _ms(setup, product) for name, product in products.items()}
    return {**errors, **times, "ok": errors["float32_error"] < ROUNDED}
