"""Write `reference.npz` for the tests: results of the authors' code with random weights.

    pip install torch scipy x-transformers==2.11.24
    export COSYVOICE_ROOT=CosyVoice PYTHONPATH=.:python_backend:contract:client
    python -m plugins.cosyvoice3.tests.codec.authors [--check]

COSYVOICE_ROOT is their repository, https://github.com/FunAudioLLM/CosyVoice, at ace7c47. All in float64, because the
phases of a source add up. Noise comes from tables: the codec's for HiFT, which they draw anew at each start, and one
drawn by numpy for the flow, because `torch.randn` depends on the processor (`noise` is what they draw). Mel and samples
are those of `CausalMaskedDiffWithDiT.inference` and `CausalHiFTGenerator.inference`: once of a whole utterance with the
chunk mask, as in their own self-test, once of its first blocks, as `CosyVoice3Model.token2wav` does, and once without
the mask, as for replies that are not streamed. `vocoded` and `pitch` are made from a mel that numpy draws.
"""

import os
import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.authors.reply_fixture import compute_in_float64
from plugins.cosyvoice3.lab.random_cosyvoice3 import NARROW, SEEDS, random_codec, tensors
from plugins.cosyvoice3.tests.codec.reference import EVERY, LENGTH, REFERENCE, STEPS, VOICES, inputs, mel, noise, tokens
from stretto_cosyvoice3.codec import AHEAD, CosyVoice3Config
from tests.codecs.stored_results import write_or_check

sys.path.insert(0, os.environ.get("COSYVOICE_ROOT", "CosyVoice"))
MISSING = {
    "matcha.models.components.flow_matching": ("BASECFM",),
    "omegaconf": ("DictConfig",),
    "cosyvoice.utils.onnx": ("SpeechTokenExtractor", "online_feature", "onnx_path"),
    "torchaudio": (),
}  # imports of their modules that are not needed here


class _BaseFlow(nn.Module):
    """Attributes of `BASECFM` in Matcha-TTS that its subclasses read."""

    def __init__(self, n_feats: int, **_: Any):
        super().__init__()
        self.n_feats, self.sigma_min = n_feats, 1e-6


def stand_in() -> None:
    """Register modules whose functions and classes do nothing."""
    for name, members in MISSING.items():
        parts = name.split(".")
        for size in range(1, len(parts) + 1):
            known = ".".join(parts[:size])
            if (known not in sys.modules and not known.startswith("cosyvoice")) or known == name:
                sys.modules[known] = ModuleType(known)
        for member in members:
            setattr(sys.modules[name], member, _BaseFlow if member == "BASECFM" else type(member, (dict,), {}))
    sys.modules["torchaudio"].__path__ = []  # type: ignore[attr-defined]
    sys.modules["cosyvoice.utils.onnx"].online_feature = False  # type: ignore[attr-defined]


def networks(config: CosyVoice3Config = NARROW) -> tuple[Any, Any]:
    """Return the authors' flow and HiFT at the widths of `config`."""
    from cosyvoice.flow.DiT.dit import DiT
    from cosyvoice.flow.flow import CausalMaskedDiffWithDiT
    from cosyvoice.flow.flow_matching import CausalConditionalCFM
    from cosyvoice.hifigan.f0_predictor import CausalConvRNNF0Predictor
    from cosyvoice.hifigan.generator import CausalHiFTGenerator
    from cosyvoice.transformer.upsample_encoder import PreLookaheadLayer

    mels, shape, vocoder = config.mels, config.estimator, config.vocoder
    sizes = type("Sizes", (), {"t_scheduler": "cosine", "training_cfg_rate": 0.2, "inference_cfg_rate": 0.7})
    estimator = DiT(
        dim=shape.width, depth=shape.layers, heads=shape.heads, dim_head=shape.head_width,
        ff_mult=shape.inner // shape.width, mel_dim=mels, mu_dim=mels, spk_dim=mels, out_channels=mels,
        static_chunk_size=shape.chunk, num_decoding_left_chunks=-1,
    )  # fmt: skip
    flow = CausalMaskedDiffWithDiT(
        input_size=mels, output_size=mels, spk_embed_dim=config.speaker, vocab_size=config.codebook_size,
        input_frame_rate=25, pre_lookahead_layer=PreLookaheadLayer(mels, config.inner, AHEAD),
        decoder=CausalConditionalCFM(240, sizes, 1, mels, estimator),
    )  # fmt: skip
    hift = CausalHiFTGenerator(
        mels, vocoder.channels, 8, 24000, 0.1, 0.003, 10, [8, 5, 3], [16, 11, 7], {"n_fft": 16, "hop_len": 4},
        [3, 7, 11], [[1, 3, 5]] * 3, [7, 7, 11], [[1, 3, 5]] * 3, 0.1, 0.99, 4,
        CausalConvRNNF0Predictor(1, mels, vocoder.source.pitch_channels),
    )  # fmt: skip
    return flow, hift


def load(published: dict[str, dict[str, Tensor]], samples: Tensor) -> tuple[Any, Any]:
    """Return the authors' flow and HiFT with weights by part and name, and noise [harmonics + 1, n], in float64."""
    flow, hift = networks()
    flow.load_state_dict(published["flow"], strict=True)
    hift.load_state_dict(published["hift"], strict=True)
    hift.stft_window = hift.stft_window.double()
    hift.m_source.l_sin_gen.sine_waves = samples.T.double().repeat(2, 1)[None]
    return flow.eval().double(), hift.eval().double()


def generate(flow: Any, ids: Tensor, voice: tuple[np.ndarray, ...], finalize: bool, has_mask: bool = True) -> Tensor:
    """Return the mel [1, M, T] of tokens from the authors' flow."""
    heard, known, x_vector = (torch.from_numpy(each)[None] for each in voice)
    made, _ = flow.inference(
        ids[None], torch.tensor([len(ids)]), heard, torch.tensor([heard.shape[1]]), known.double(),
        torch.tensor([known.shape[1]]), x_vector.double(), streaming=has_mask, finalize=finalize,
    )  # fmt: skip
    return made


def results(published: dict[int, dict[str, dict[str, Tensor]]], samples: Tensor) -> dict[str, Tensor]:
    """Return the results of the authors' code for the weights by seed."""
    found = dict[str, Tensor]()
    for seed, weights in published.items():
        (flow, hift), ids, drawn = load(weights, samples), tokens(seed), mel(seed)
        found |= {"noise": flow.decoder.rand_noise[..., : 2 * LENGTH], f"pitch_{seed}": hift.f0_predictor(drawn)}
        flow.decoder.rand_noise = noise()[None]
        found[f"vocoded_{seed}"] = hift.inference(drawn)[0]
        for size in STEPS:
            found[f"vocoded_{seed}_{size}"] = hift.inference(drawn[..., : 2 * size], finalize=False)[0]
        for name, voice in VOICES.items():
            found[f"mel_{name}_{seed}"] = generate(flow, ids, voice, True)
            found[f"whole_mel_{name}_{seed}"] = generate(flow, ids, voice, True, has_mask=False)
            for part in ("mel", "whole_mel"):
                found[f"pcm_{part}_{name}_{seed}"] = hift.inference(found[f"{part}_{name}_{seed}"])[0]
            for size in STEPS:
                found[f"mel_{name}_{seed}_{size}"] = generate(flow, ids[: size + AHEAD], voice, False)
    return found


def main() -> None:
    torch.set_num_threads(1)
    stand_in()
    given, published = inputs(), {seed: tensors(seed=seed) for seed in SEEDS}  # before torch is changed
    torch.randn = partial(torch.randn, dtype=torch.float32)  # in the flow
    compute_in_float64()
    with torch.inference_mode():
        write_or_check(REFERENCE, EVERY, results(published, random_codec().source_noise), given)


if __name__ == "__main__":
    main()
