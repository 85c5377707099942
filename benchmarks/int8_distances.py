"""Distance of logits and latents in int8 from those in float32, for random releases of the families.

    python -m benchmarks.int8_distances --releases pocket_tts qwen3-tts-small

A release is one of `authors` (published sizes), of `ensemble --family` (small language models), or of `WIDENED`: the
small release of a family's tests, with layers that are wide enough for int8. Orpheus needs the package of
`examples/custom_family`. The engine generates the same replies four times: in float32, and with int8 in all linear
layers, only in those of the language model (`backbone`), and only in the others (`head`: depth transformer, flow or
diffusion head). Each id and latent that float32 generated replaces that of the other runs, so every step of all runs
reads the same inputs. This is not possible for VibeVoice, whose marks are not sampled: its runs have different lengths.

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
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.checkpoints import (
    random_chatterbox,
    random_cosyvoice3,
    random_espnet,
    random_fish_s2,
    random_glm4_voice,
    random_higgs_audio_v3,
    random_kyutai_stt,
    random_kyutai_tts,
    random_moshi,
    random_moss,
    random_orpheus,
    random_personaplex,
    random_phonon,
    random_vibevoice_realtime,
    random_vita,
    random_voxcpm2,
)
from benchmarks.checkpoints.small_models import SMALL_MODELS, write_checkpoint
from benchmarks.contenders import CONTENDERS
from benchmarks.engines import SteppedEngine
from benchmarks.harness import append_result, command_line
from stretto import cpu_backend
from stretto.config import EngineConfig
from stretto.convert.command import main as convert
from stretto.engine.host import vllm_config
from stretto.engine.models import multi_stream
from stretto.engine.worker import sampler
from stretto.engine.worker.latent_draw import LatentDraw
from stretto.families.cosyvoice3.mechanism import draw as cosyvoice3_draw
from stretto.families.fish_s2.mechanism import draw as fish_s2_draw
from stretto.families.vibevoice_realtime.mechanism.draw import WindowDraw
from stretto.family.plugin import family_at
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
BACKBONE = "model.", "transformer."  # the latter in GPT-2
PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "backbone": lambda name: name.startswith(BACKBONE),
    "head": lambda name: not name.startswith(BACKBONE),
}


WIDTH = 512
INNER = 1024
LAYERS = 4
HUGGING_FACE = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
HUGGING_FACE |= {"num_attention_heads": 16, "num_key_value_heads": 8}  # of 32 numbers
KYUTAI = {"dim": WIDTH, "num_heads": 8, "num_layers": LAYERS}
KYUTAI_DEPTH = {"depformer_dim": 256, "depformer_num_heads": 8, "depformer_dim_feedforward": 768}


def write_kyutai(family: str, module: Any, folder: Path) -> list[str]:
    """Write a release of a family of Kyutai's; return the converter's arguments."""
    depth = {} if family == "kyutai-stt" else KYUTAI_DEPTH
    release = str(module.write_release(folder, **KYUTAI, **depth))
    return [family, "--model", release]


def write_chatterbox(folder: Path) -> list[str]:
    """Write a release of Chatterbox; return the converter's arguments."""
    with mock.patch.dict(random_chatterbox.SMALL, HUGGING_FACE):
        return random_chatterbox.command(random_chatterbox.write_release(folder), folder)[:-2]


def write_cosyvoice3(folder: Path) -> list[str]:
    """Write a release of CosyVoice 3; return the converter's arguments."""
    with mock.patch.dict(random_cosyvoice3.SMALL, HUGGING_FACE):
        return ["cosyvoice3", "--model", str(random_cosyvoice3.write_release(folder))]


def write_csm(folder: Path) -> list[str]:
    """Write a release of CSM; return the converter's arguments."""
    csm = import_module("tests.published_csm")
    depth = csm.CONFIG["depth_decoder_config"] | {**HUGGING_FACE, "hidden_size": 256, "intermediate_size": 512}
    depth |= {"backbone_hidden_size": WIDTH, "num_attention_heads": 16}
    with mock.patch.dict(csm.CONFIG, HUGGING_FACE, depth_decoder_config=depth):
        return list(csm.write_release(folder, csm.make_model()).command)


def write_fish_s2(folder: Path) -> list[str]:
    """Write a release of Fish Audio S2; return the converter's arguments."""
    sizes = {"dim": WIDTH, "intermediate_size": INNER, "n_layer": LAYERS}
    sizes |= {"n_head": 16, "n_local_heads": 8, "head_dim": 32}
    num_codebooks, num_codes, *_ = random_fish_s2.KINDS["small"]
    with mock.patch.dict(random_fish_s2.KINDS, small=(num_codebooks, num_codes, sizes, sizes)):
        return random_fish_s2.command(random_fish_s2.write_release(folder))


def write_higgs_audio_v3(folder: Path) -> list[str]:
    """Write a release of Higgs Audio v3; return the converter's arguments."""
    with mock.patch.dict(random_higgs_audio_v3.SMALL, HUGGING_FACE):
        release = str(random_higgs_audio_v3.write_release(folder))
    return ["higgs-audio-v3", *hugging_face(release)]


def write_moss_tts(folder: Path) -> list[str]:
    """Write a release of MOSS-TTS; return the converter's arguments."""
    with mock.patch.dict(random_moss.SMALL, HUGGING_FACE):
        return random_moss.command(random_moss.write_release(folder))


def write_orpheus(folder: Path) -> list[str]:
    """Write a release of Orpheus; return the converter's arguments."""
    config = random_orpheus.LlamaConfig
    with mock.patch.object(random_orpheus, "LlamaConfig", lambda **given: config(**given | HUGGING_FACE)):
        release = str(random_orpheus.write_release(folder))
    random_orpheus.write_snac(folder / "snac")
    return ["orpheus", "--model", release, "--codec", f"{release}/snac"]


def write_phonon(folder: Path) -> list[str]:
    """Write a release of Phonon, of the published size; return the converter's arguments."""
    return ["phonon", "--model", str(random_phonon.write_release(folder, "published"))]


def write_valle(folder: Path) -> list[str]:
    """Write a release of VALL-E; return the converter's arguments."""
    with mock.patch.dict(random_espnet.NUMBERS, att_unit=WIDTH, head=16, ar_layer=LAYERS):
        return random_espnet.command(random_espnet.write_release(folder), folder)[:-2]


def write_vibevoice_realtime(folder: Path) -> list[str]:
    """Write a release of VibeVoice Realtime; return the converter's arguments."""
    widths = {name: HUGGING_FACE[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    with mock.patch.dict(random_vibevoice_realtime.SIZES, small=(widths, (16, 8), LAYERS // 2)):
        return ["vibevoice-realtime", "--model", str(random_vibevoice_realtime.write_release(folder))]


def write_vita_audio(folder: Path) -> list[str]:
    """Write a release of VITA-Audio with ten modules; return the converter's arguments."""
    layers = {"num_hidden_layers": LAYERS + random_vita.MODULES}
    release = str(random_vita.write_release(folder / "release", random_vita.SMALL | HUGGING_FACE | layers))
    codec = str(random_glm4_voice.write_glm4_voice(folder / "codec"))
    tokenizer = str(random_glm4_voice.write_glm4_tokenizer(folder / "tokenizer"))
    return ["vita-audio", *hugging_face(release), "--codec", codec, "--ssl-tokenizer", tokenizer]


def write_voxcpm2(folder: Path) -> list[str]:
    """Write a release of VoxCPM2; return the converter's arguments."""
    record = random_voxcpm2.config()
    record["lm_config"] |= HUGGING_FACE
    for part in ("encoder_config", "dit_config"):
        record[part] |= {"hidden_dim": 256, "ffn_dim": 512, "num_heads": 8}
    with mock.patch.object(random_voxcpm2, "config", return_value=record):
        return ["voxcpm2", "--model", str(random_voxcpm2.write_release(folder))]


def hugging_face(release: str) -> list[str]:
    """Return the converter's arguments for a release with a config.json and a tokenizer of its own."""
    return ["--model", release, "--config", f"{release}/config.json", "--tokenizer", release]


WIDENED: dict[str, Callable[[Path], list[str]]] = {
    "kyutai-stt": partial(write_kyutai, "kyutai-stt", random_kyutai_stt),
    "kyutai-tts": partial(write_kyutai, "kyutai-tts", random_kyutai_tts),
    "moshi": partial(write_kyutai, "moshi", random_moshi),
    "personaplex": partial(write_kyutai, "personaplex", random_personaplex),
    "chatterbox-small": write_chatterbox,
    "cosyvoice3-small": write_cosyvoice3,
    "csm": write_csm,
    "fish-s2": write_fish_s2,
    "higgs-audio-v3": write_higgs_audio_v3,
    "moss-tts": write_moss_tts,
    "orpheus-small": write_orpheus,
    "phonon": write_phonon,
    "valle": write_valle,
    "vibevoice-realtime": write_vibevoice_realtime,
    "vita-audio": write_vita_audio,
    "voxcpm2": write_voxcpm2,
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
            caller = sys._getframe(1).f_code.co_name
            if caller != "_redraw":  # a repeated id is drawn again from the same logits
                kind = "codes" if caller == "chosen_others" else "first"
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
    family = family_at(checkpoint)
    use = multi_stream.use_int8

    def use_partly(model: torch.nn.Module) -> None:
        chosen = [module for name, module in model.named_modules() if PARTS[part](name)]
        use(SimpleNamespace(modules=lambda: chosen))  # type: ignore[arg-type]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(multi_stream, "use_int8", use_partly))
        draw = outputs.draw(sampler.draw)
        for module in (sampler, cosyvoice3_draw):
            stack.enter_context(mock.patch.object(module, "draw", draw))
        stack.enter_context(mock.patch.object(fish_s2_draw, "draw_late", outputs.draw(fish_s2_draw.draw_late)))
        for kind in (LatentDraw, WindowDraw):
            stack.enter_context(mock.patch.object(kind, "__init__", recording(kind.__init__, outputs)))
        limits = ARGUMENTS | {"max_model_len": min(512, family.max_model_len)}
        engine = SteppedEngine(vllm_config(EngineConfig(checkpoint, limits, {}, int8=bool(part))))
        engine.add_prompts([fixed(prompt) for prompt in make_prompts(family, 4).values()])
        engine.finish()


def fixed(prompt: Prompt) -> Prompt:
    """Return a prompt whose reply has the same number of frames in every run, and whose logits min-p does not mask."""
    audio = replace(prompt.sampling.audio, min_rows=NUM_ROWS, max_rows=NUM_ROWS)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio, min_p=0.0))


def recording(begin: Any, outputs: Outputs) -> Any:
    """Return a constructor that also records the predictions of latents."""

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        self._predict = outputs.predict(self._predict)

    return __init__


def distances(exact: Outputs, other: Outputs) -> dict[str, dict[str, float]]:
    """Return the figures of each kind of output."""
    found = defaultdict[str, list[float]](list)
    changed = defaultdict[str, list[bool]](list)
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
    words = (WIDENED.get(release) or CONTENDERS[release].write)(folder / "release")
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
    known = [*SMALL_MODELS, *WIDENED, *CONTENDERS]
    parser = command_line(__doc__, "int8_distances")
    parser.add_argument("--releases", nargs="+", choices=known, default=known, help="default: all")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    main(given.releases, given.out)
