"""Write `reference.npz` for the tests: results of the authors' code with random weights.

    pip install torch scipy x-transformers==2.11.24
    COSYVOICE_ROOT=CosyVoice PYTHONPATH=.:python_backend:client python -m tests.codecs.cosyvoice3.authors [--check]

COSYVOICE_ROOT is their repository, https://github.com/FunAudioLLM/CosyVoice, at ace7c47. All in float64, because the
phases of a source add up. HiFT's noise, which they draw anew at each start, is taken from the codec's table; that of
the flow is theirs. Mel and samples are those of `CausalMaskedDiffWithDiT.inference` and
`CausalHiFTGenerator.inference`: once of a whole utterance with the chunk mask, as in their own self-test, once of
its first blocks, as `CosyVoice3Model.token2wav` does, and once without the mask, as for replies that are not streamed.
"""

import os
import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.checkpoints.random_cosyvoice3 import NARROW, SEEDS, random_codec, tensors
from stretto.codecs.cosyvoice3 import AHEAD, CosyVoice3Config
from tests.codecs.cosyvoice3.reference import REFERENCE, STEPS, VOICES, thinned, tokens

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


def load(seed: int) -> tuple[Any, Any]:
    """Return the authors' flow and HiFT with the random weights, in float64."""
    (flow, hift), published = networks(), tensors(seed=seed)
    flow.load_state_dict(published["flow"], strict=True)
    hift.load_state_dict(published["hift"], strict=True)
    hift.stft_window = hift.stft_window.double()
    table = random_codec(seed=seed).source_noise.T.double()
    hift.m_source.l_sin_gen.sine_waves = table.repeat(2, 1)[None]
    return flow.eval().double(), hift.eval().double()


def decode(
    flow: Any, hift: Any, ids: Tensor, voice: tuple[np.ndarray, ...], finalize: bool, has_mask: bool = True
) -> tuple[Tensor, Tensor]:
    """Decode tokens with the authors' code to mel [1, M, T] and samples [1, n]."""
    heard, mel, x_vector = (torch.from_numpy(each)[None] for each in voice)
    made, _ = flow.inference(
        ids[None], torch.tensor([len(ids)]), heard, torch.tensor([heard.shape[1]]), mel.double(),
        torch.tensor([mel.shape[1]]), x_vector.double(), streaming=has_mask, finalize=finalize,
    )  # fmt: skip
    return made, hift.inference(made.double(), finalize=finalize)[0]


def main() -> None:
    torch.set_num_threads(1)
    stand_in()
    results = dict[str, Tensor]()
    torch.set_default_dtype(torch.float64)
    randn = torch.randn
    torch.randn = partial(randn, dtype=torch.float32)  # the flow's noise is drawn in float32
    for seed in SEEDS:
        flow, hift = load(seed)
        flow.decoder.rand_noise = flow.decoder.rand_noise.double()
        with torch.inference_mode():
            for name, voice in VOICES.items():
                ids = tokens(seed)
                results[f"mel_{name}_{seed}"], results[f"pcm_{name}_{seed}"] = decode(flow, hift, ids, voice, True)
                whole = decode(flow, hift, ids, voice, True, has_mask=False)
                results[f"whole_mel_{name}_{seed}"], results[f"whole_pcm_{name}_{seed}"] = whole
                for size in STEPS:
                    _, results[f"pcm_{name}_{seed}_{size}"] = decode(flow, hift, ids[: size + AHEAD], voice, False)
    made = {name: thinned(each.numpy()) for name, each in results.items()}
    if "--check" in sys.argv:
        stored = np.load(REFERENCE)
        assert set(stored.files) == set(made), sorted(set(stored.files) ^ set(made))
        for name, each in made.items():
            np.testing.assert_allclose(stored[name], each, atol=1e-5, err_msg=name)
    else:
        np.savez_compressed(REFERENCE, **made)


if __name__ == "__main__":
    main()
