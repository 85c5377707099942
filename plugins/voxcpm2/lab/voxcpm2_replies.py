"""Generate a test fixture with replies from VoxCPM2's authors' code for small random releases, with our noise.

    python -m plugins.voxcpm2.lab.voxcpm2_replies plugins/voxcpm2/tests/data/voxcpm2_replies.npz

voxcpm 2.0.3 must be importable, with einops. It uses librosa and torchaudio only to read files, so stubs replace them.
It draws noise with `torch.randn`. The script replaces this function with the engine's noise for the position of the row
that carries the latents. It computes in float64, so that the fixture does not depend on the processor, and rounds
results to float32.
"""

import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from lab.authors.reply_fixture import compute_in_float64, digest, run_arrays
from plugins.voxcpm2.lab.random_voxcpm2 import RECORDINGS, inputs, recording, tensors, write_release
from stretto.engine.sampling.noise import gaussian, seed_key, stream_keys

KINDS = ("plain", "scaled")
SEED = 7
GUIDANCE = 2.0
STEPS = 10
MAX_PATCHES = 20
TEXT = "hello, 你好 you."
PROMPT_TEXT = "ab "
MODES: dict[str, dict[str, str]] = {
    "zero": {},
    "reference": {"reference_wav_path": "reference"},
    "continuation": {"prompt_wav_path": "prompt", "prompt_text": PROMPT_TEXT},
    "both": {"reference_wav_path": "reference", "prompt_wav_path": "prompt", "prompt_text": PROMPT_TEXT},
}
NUDGE = 1e-6
NUM_NUDGES = 3
NUM_SAMPLES = 1500  # number of samples stored from the start and from the end
TOLERANCE = 1e-5  # permitted difference between processors: results of up to 25 are rounded to float32
LEAST_MARGIN = 2e-5  # least distance of bottleneck values from rounding points, and between the two stop logits


def import_authors() -> Any:
    """Import and return the authors' model module."""
    from transformers import PreTrainedTokenizerFast  # before the stubs, because it looks for installed packages

    librosa: Any = types.ModuleType("librosa")
    librosa.load = lambda path, sr, mono: (recording(path).astype(np.float64), sr)
    core: Any = types.ModuleType("voxcpm.core")
    core.VoxCPM = object
    zipenhancer = types.ModuleType("voxcpm.zipenhancer")
    sys.modules |= {"librosa": librosa, "torchaudio": types.ModuleType("torchaudio")}
    sys.modules |= {"voxcpm.core": core, "voxcpm.zipenhancer": zipenhancer}
    from voxcpm.model import voxcpm2

    # The random release has a unigram tokenizer.
    voxcpm2.LlamaTokenizerFast = types.SimpleNamespace(
        from_pretrained=lambda path: PreTrainedTokenizerFast(tokenizer_file=f"{path}/tokenizer.json", unk_token="<unk>")
    )
    return voxcpm2


class Recorder:
    """Recorder of a model's inputs and outputs during a reply, with its noise replaced and one patch nudged."""

    def __init__(self, model: Any, nudge: torch.Tensor | float, stops: bool):
        self.patches = list[torch.Tensor]()
        self.leads = list[torch.Tensor]()
        self.rows: Any = ()
        self._model = model
        self._nudge = nudge
        self._stops = stops
        self._position = 0
        self.margin = 1.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the model's functions during the `with` block."""
        model = self._model
        cfm = sys.modules["voxcpm.modules.locdit.unified_cfm"]
        saved = model._inference, model.feat_decoder.forward, model.stop_head.forward, torch.randn
        generate, decode, stop, _ = saved

        def inference(text: Any, text_mask: Any, feat: Any, feat_mask: Any, **more: Any) -> Any:
            self.rows = (text[0], feat_mask[0], feat[0])
            self._position = text.shape[1]
            return generate(text, text_mask, feat, feat_mask, **more)

        def feat_decoder(mu: Any, **more: Any) -> torch.Tensor:
            out = decode(mu=mu, **more)
            out = out + self._nudge if not self.patches else out
            self.patches.append(out[0].T)
            return out

        def stop_head(x: torch.Tensor) -> torch.Tensor:
            logits = stop(x)
            self.leads.append(logits[0])
            return logits if self._stops else torch.tensor([[1.0, 0.0]])

        def randn(shape: tuple[int, ...], **more: Any) -> torch.Tensor:
            _, channels, length = shape
            seeds = np.array([seed_key(SEED)], np.int32)
            positions = np.array([self._position], np.int32)
            keys = stream_keys(seeds, positions, 1 + channels * length)[:, 1:]
            self._position += 1
            return torch.from_numpy(gaussian(keys)).double().view(1, length, channels).transpose(1, 2).contiguous()

        def half(module: Any, inputs: Any, output: torch.Tensor) -> None:
            scaled = torch.tanh(output) * model.fsq_layer.scale
            self.margin = min(self.margin, float((scaled - scaled.floor() - 0.5).abs().min()))

        hook = model.fsq_layer.in_proj.register_forward_hook(half)
        model._inference = inference
        model.feat_decoder.forward = feat_decoder
        model.stop_head.forward = stop_head
        cfm.torch.randn = randn
        try:
            yield
        finally:
            hook.remove()
            model._inference, model.feat_decoder.forward, model.stop_head.forward, cfm.torch.randn = saved


def reply(model: Any, mode: str, nudge: torch.Tensor | float = 0.0, stops: bool = True) -> tuple[Recorder, np.ndarray]:
    """Generate a reply; return its record and its samples."""
    recorder = Recorder(model, nudge, stops)
    with recorder.installed():
        pcm = model.generate(TEXT, cfg_value=GUIDANCE, inference_timesteps=STEPS, max_len=MAX_PATCHES, **MODES[mode])
    return recorder, pcm.flatten().numpy()


def values(model: Any, mode: str, name: str) -> dict[str, np.ndarray]:
    """Generate a reply in a mode; return the values of `plugins.voxcpm2.tests.voxcpm2_release.Reply`."""
    found, pcm = reply(model, mode)
    latents = torch.stack(found.patches).flatten(1).numpy()
    text, is_audio, feat = found.rows
    lead = torch.stack(found.leads).diff(dim=1)[:, 0].numpy()
    nudged = np.zeros(len(latents))
    shape = 1, model.feat_dim, model.patch_size
    for number in range(NUM_NUDGES):
        nudge = torch.from_numpy(NUDGE * np.random.default_rng(number).standard_normal(shape))
        moved, _ = reply(model, mode, nudge, stops=False)
        other = torch.stack(moved.patches).flatten(1).numpy()[: len(latents)]
        nudged = np.maximum(nudged, np.abs(other - latents).max(1))
    margins = {"stop": float(np.abs(lead).min()), "half": found.margin}
    levels = {"latents": float(latents.std()), "pcm": float(pcm.std()), "loudest": float(np.abs(pcm).max())}
    print(name, len(latents), "patches", margins, levels, "nudged", nudged.max(), lead.round(2).tolist(), flush=True)
    assert min(margins.values()) > LEAST_MARGIN, name
    assert len(latents) >= 4, name
    return {
        "text": text.numpy(),
        "is_audio": is_audio.numpy().astype(bool),
        "latents_before": feat.flatten(1).numpy().astype(np.float32),
        "latents": latents.astype(np.float32),
        "stop_lead": lead.astype(np.float32),
        "nudged": nudged.astype(np.float32),
        "num_samples": np.array(len(pcm)),
        "pcm": pcm[:NUM_SAMPLES].astype(np.float32),
        "pcm_last": pcm[-NUM_SAMPLES:].astype(np.float32),
    }


def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    authors = import_authors()
    fixture: dict[str, Any] = {"inputs": digest(inputs(KINDS))}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        releases = {kind: (write_release(Path(folder) / kind, kind), tensors(kind)[0]) for kind in KINDS}
        compute_in_float64()
        for kind, (release, weights) in releases.items():
            authors.load_file = lambda path, weights=weights: dict(
                weights
            )  # safetensors cannot read after torch is changed
            model = authors.VoxCPM2Model.from_local(str(release), optimize=False, device="cpu")
            own = set(model.state_dict())
            stored = {*torch.load(release / "audiovae.pth")["state_dict"]}
            with safe_open(release / "model.safetensors", "pt") as file:
                assert own == {*file.keys()} | {f"audio_vae.{name}" for name in stored}, "names differ"
            for mode in MODES:
                found = values(model, mode, f"{kind}.{mode}")
                fixture |= {f"{kind}.{mode}.{name}": value for name, value in found.items()}
            for name in RECORDINGS:
                feat = model._encode_wav(name, "right" if name == "reference" else "left")
                fixture[f"{kind}.{name}"] = feat.flatten(1).numpy().astype(np.float32)
    return fixture


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
