"""Write `reference.npz` for the tests: results of the authors' code on the random checkpoint.

    pip install torch diffusers==0.29.0 einops omegaconf scipy pyyaml
    PYTHONPATH=.:python_backend:GLM-4-Voice:Matcha-TTS python -m tests.codecs.glm4_voice.authors [--check]

GLM-4-Voice is https://github.com/THUDM/GLM-4-Voice at eb00ce9, Matcha-TTS https://github.com/shivammehta25/Matcha-TTS
at 108906c. Everything runs in float64, because phases accumulate. Noise is drawn from the codec's tables instead of
torch's generator. `source` and `pcm` are made from a mel that numpy draws. `demo` is the loop of their `web_demo.py`,
whose prompt repeats a frame from the third block on; `loop` is the same without that frame.
"""

import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor

from lab.authors.reply_fixture import compute_in_float64
from lab.releases.random_glm4_voice import write_glm4_voice
from stretto.codecs import glm4_voice as ours
from stretto.codecs.glm4_voice import Glm4VoiceCodec
from tests.codecs.glm4_voice.reference import EVERY, LENGTHS, PART, PROMPT, REFERENCE, SIZES, inputs, mel, tokens
from tests.codecs.stored_results import write_or_check

MISSING = {
    "conformer": ["ConformerBlock"],
    "hyperpyyaml": ["load_hyperpyyaml"],
    "torchaudio": [],
    "matcha.utils": [],
    "matcha.utils.pylogger": ["get_pylogger"],
}  # imports of their modules that are not needed here


def stand_in() -> None:
    """Register modules of these names whose functions and classes do nothing."""
    for name, members in MISSING.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for member in members:
            setattr(module, member, type(member, (), {"__init__": lambda *_: None}))
        sys.modules[name] = module


def built(folder: Path) -> Any:
    """Return the authors' `AudioDecoder` with the checkpoint in a folder."""
    stand_in()
    import flow_inference
    from cosyvoice.flow.decoder import ConditionalDecoder
    from cosyvoice.flow.flow import MaskedDiffWithXvec
    from cosyvoice.flow.flow_matching import ConditionalCFM
    from cosyvoice.flow.length_regulator import InterpolateRegulator
    from cosyvoice.hifigan.f0_predictor import ConvRNNF0Predictor
    from cosyvoice.hifigan.generator import HiFTGenerator
    from cosyvoice.transformer.encoder import BlockConformerEncoder
    from omegaconf import DictConfig

    raw = yaml.load((folder / "config.yaml").read_text(), ours._Loader)
    record = ours._resolved(raw, raw)
    flow, hift = record["flow"], record["hift"]
    matching = flow.pop("decoder")
    matching["estimator"] = ConditionalDecoder(**matching["estimator"])
    matching["cfm_params"] = DictConfig(**matching["cfm_params"])
    flow["encoder"] = BlockConformerEncoder(**flow["encoder"])
    flow["length_regulator"] = InterpolateRegulator(**flow["length_regulator"])
    hift["f0_predictor"] = ConvRNNF0Predictor(**hift["f0_predictor"])
    parts = {"flow": MaskedDiffWithXvec(**flow, decoder=ConditionalCFM(**matching)), "hift": HiFTGenerator(**hift)}
    flow_inference.load_hyperpyyaml = lambda _: parts
    paths = (str(folder / name) for name in ("config.yaml", "flow.pt", "hift.pt"))
    decoder = flow_inference.AudioDecoder(*paths, device="cpu")
    decoder.flow.eval().double()
    decoder.hift.eval().double()
    decoder.hift.stft_window = decoder.hift.stft_window.double()
    return decoder


def draw_from(codec: Glm4VoiceCodec) -> None:
    """Replace the authors' noise with the codec's tables; the shape distinguishes the flow from the source."""
    tables = {80: codec.noise.double(), 9: codec.source_noise.double()}

    def drawn(like: Tensor) -> Tensor:
        table = tables.get(like.shape[1])
        return torch.zeros_like(like) if table is None else table[None, :, : like.shape[2]]

    torch.randn_like = drawn
    torch.distributions.uniform.Uniform.sample = lambda *_args, **_kwargs: codec.phases[None].clone()


def loop(decoder: Any, ids: Tensor, sizes: tuple[int, ...], repeats: bool) -> Tensor:
    """Decode ids [1, T] in blocks to samples [n]; `repeats` repeats a frame, as the published loop does."""
    prompt, mels, parts, done = torch.zeros(1, 0, 80), [], [], 0
    for size in [*sizes, *[sizes[-1]] * ids.shape[1]]:
        if done >= ids.shape[1]:
            break
        block, is_last = ids[:, done : done + size], done + size >= ids.shape[1]
        speech, mel = decoder.token2wav(
            block,
            uuid="u",
            prompt_token=ids[:, :done],
            prompt_feat=prompt,
            embedding=torch.zeros(1, 192),
            finalize=is_last,
        )
        mels.append(mel if repeats or not mels else mel[:, :, 1:])
        parts.append(speech)
        prompt, done = torch.cat(mels, 2).transpose(1, 2), done + size
    return torch.cat(parts, 1)[0]


def parts(decoder: Any, codec: Glm4VoiceCodec) -> dict[str, Tensor]:
    """Return the outputs of encoder, regulator, flow (with and without prompt) for PART tokens, and of the vocoder."""
    flow, ids, length, none = decoder.flow, tokens()[:, :PART], torch.tensor([PART]), torch.tensor([0])
    encoded, _ = flow.encoder(flow.input_embedding(ids), length)
    goal, _ = flow.length_regulator(flow.encoder_proj(encoded), torch.tensor([codec.mels(PART)]))

    def generate(prompt: Tensor) -> Tensor:
        known = prompt.transpose(1, 2)
        return flow.inference(ids, length, ids[:, :0], none, known, torch.tensor([known.shape[1]]), torch.zeros(1, 192))

    whole = generate(torch.zeros(1, 80, 0))
    pcm, source = decoder.hift.inference(mel=mel())
    results = {
        "encoded": encoded,
        "goal": goal.transpose(1, 2),
        "mel": whole,
        "prompted": generate(mel()[..., :PROMPT]),
    }
    return results | {"pcm": pcm, "source": source}


def loops(decoder: Any) -> dict[str, Tensor]:
    """Return the results of the authors' loop for each length and each list of block sizes."""
    return {
        f"{kind}_{sizes[0]}_{length}": loop(decoder, tokens()[:, :length], sizes, kind == "demo")
        for sizes in SIZES
        for length in LENGTHS[sizes[0]]
        for kind in ("demo", "loop")
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = write_glm4_voice(Path(name))
        codec, given = Glm4VoiceCodec(ours.read_config(folder)), inputs(folder)
        compute_in_float64()
        decoder = built(folder)
    draw_from(codec)
    with torch.inference_mode():
        write_or_check(REFERENCE, EVERY, parts(decoder, codec) | loops(decoder), given)


if __name__ == "__main__":
    main()
