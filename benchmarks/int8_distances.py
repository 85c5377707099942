"""Distance of logits and latents in int8 from those in float32, for random releases of the families.

    python -m benchmarks.int8_distances --releases pocket_tts qwen3-tts-small

A release is one of `authors` (published sizes) or of `ensemble --family` (small language models). The engine generates
the same replies four times: in float32, and with int8 in all linear layers, only in those of the language model
(`backbone`), and only in the others (`head`: depth transformer, flow or diffusion head). Each id and latent that
float32 generated replaces that of the other runs, so every step of all runs reads the same inputs.

One line of JSON has for each part of the model and each kind of output the median and the 95th percentile over rows:

    first, codes    `distance`: norm of the logits' difference ÷ norm of the logits less their mean; `other`: share of
                    rows whose most likely id differs. `codes` are all streams but the first.
    latents         `distance`: norm of the difference ÷ norm of the latent

Random weights have no outliers, so trained ones may differ more.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.authors import CONTENDERS
from benchmarks.checkpoints.small_models import SMALL_MODELS, write_checkpoint
from benchmarks.engines import SteppedEngine
from benchmarks.harness import append_result, command_line
from stretto import cpu_backend
from stretto.config import EngineConfig
from stretto.convert.command import main as convert
from stretto.engine.host import vllm_config
from stretto.engine.models import multi_stream
from stretto.engine.worker import latent_draw, sampler
from stretto.families.plugin import family_at
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompts

ARGUMENTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 512 << 20,
}
NUM_ROWS = 24  # audio rows of a reply
PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "backbone": lambda name: name.startswith("model."),
    "head": lambda name: not name.startswith("model."),
}


@dataclass
class Outputs:
    """Logits and latents of a run, in the order of generation.

    Attributes:
        forced: Run whose ids and latents replace the generated ones; None to keep them.
        logits: Kind and logits of each draw, [N, C].
        ids: Ids of each draw.
        latents: Latents of each prediction, [N, D].
    """

    forced: "Outputs | None" = None
    logits: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    ids: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)

    def draw(self, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a replacement for the sampler's function `draw`."""

        def replacement(logits: torch.Tensor, *others: Any) -> torch.Tensor:
            kind = "codes" if sys._getframe(1).f_code.co_name == "draw_codes" else "first"
            self.logits.append((kind, logits.flatten(0, 1).clone()))
            found = original(logits, *others) if self.forced is None else self.forced.ids[len(self.ids)].clone()
            self.ids.append(found.clone())
            return found

        return replacement

    def predict(self, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a replacement for the predictor of latents."""

        def replacement(*given: Any) -> torch.Tensor:
            found = original(*given)
            self.latents.append(found.float().clone())
            return found if self.forced is None else self.forced.latents[len(self.latents) - 1].to(found.dtype)

        return replacement


def generate(checkpoint: Path, outputs: Outputs, part: str = "") -> None:
    """Generate the replies to four test prompts, with `part` of the model in int8, and record the outputs."""
    family, use = family_at(checkpoint), multi_stream.use_int8

    def use_partly(model: torch.nn.Module) -> None:
        chosen = [module for name, module in model.named_modules() if PARTS[part](name)]
        use(SimpleNamespace(modules=lambda: chosen))  # type: ignore[arg-type]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(multi_stream, "use_int8", use_partly))
        stack.enter_context(mock.patch.object(sampler, "draw", outputs.draw(sampler.draw)))
        begin = recording(latent_draw.LatentDraw.__init__, outputs)
        stack.enter_context(mock.patch.object(latent_draw.LatentDraw, "__init__", begin))
        limits = ARGUMENTS | {"max_model_len": min(512, family.max_model_len)}
        engine = SteppedEngine(vllm_config(EngineConfig(checkpoint, limits, {}, int8=bool(part))))
        engine.add_prompts([fixed(prompt) for prompt in make_prompts(family, 4).values()])
        engine.finish()


def fixed(prompt: Prompt) -> Prompt:
    """Return a prompt whose reply has the same number of frames in every run."""
    audio = replace(prompt.sampling.audio, min_rows=NUM_ROWS, max_rows=NUM_ROWS)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio))


def recording(begin: Any, outputs: Outputs) -> Any:
    """Return a constructor that also records the predictions of latents."""

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        self._predict = outputs.predict(self._predict)

    return __init__


def distances(exact: Outputs, other: Outputs) -> dict[str, dict[str, float]]:
    """Return the figures of each kind of output."""
    found, changed = defaultdict[str, list[float]](list), defaultdict[str, list[bool]](list)
    for (kind, wanted), (_, made) in zip(exact.logits, other.logits, strict=True):
        for a, b in zip(wanted, made, strict=True):
            a, b = a[a.isfinite()].double(), b[a.isfinite()].double()
            if len(a) > 1:
                found[kind].append(float((a - b).norm() / (a - a.mean()).norm()))
                changed[kind].append(bool(a.argmax() != b.argmax()))
    for wanted, made in zip(exact.latents, other.latents, strict=True):
        found["latents"] += ((wanted - made).norm(dim=1) / wanted.norm(dim=1)).tolist()
    return {
        kind: {
            "rows": len(values),
            "distance_p50": round(float(np.median(values)), 4),
            "distance_p95": round(float(np.percentile(values, 95)), 4),
            **({"other": round(float(np.mean(changed[kind])), 4)} if kind in changed else {}),
        }
        for kind, values in found.items()
    }


def measured(checkpoint: Path) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Yield the figures of each part of a model that has layers for int8."""
    exact = Outputs()
    generate(checkpoint, exact)
    for part in PARTS:
        outputs = Outputs(exact)
        generate(checkpoint, outputs, part)
        yield part, distances(exact, outputs)


def write(release: str, folder: Path) -> Path:
    """Write a random release and convert it; return the checkpoint."""
    if release in SMALL_MODELS:
        return write_checkpoint(SMALL_MODELS[release].family, folder / "checkpoint")
    words = CONTENDERS[release].write(folder / "release")
    assert convert([*words, "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def main(releases: Iterable[str], out: Path) -> None:
    """Measure each release, and append its line."""
    cpu_backend.install()
    for release in releases:
        with tempfile.TemporaryDirectory() as folder:
            figures = dict(measured(write(release, Path(folder))))
        append_result(out, "int8_distances", {"release": release, "distances": figures})


def parse() -> argparse.Namespace:
    """Parse the command line."""
    known = [*SMALL_MODELS, *CONTENDERS]
    parser = command_line(__doc__, "int8_distances")
    parser.add_argument("--releases", nargs="+", choices=known, default=known, help="default: all")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    main(given.releases, given.out)
