"""Write `reference.npz` for the tests: results of the authors' code with random weights.

    pip install torch einops omegaconf scipy diffusers==0.29.0
    CHATTERBOX_SRC=chatterbox PYTHONPATH=.:python_backend python -m plugins.chatterbox.tests.s3gen.authors [--check]

CHATTERBOX_SRC is the folder chatterbox in the wheel chatterbox-tts 0.1.7. All runs in float64, because phases of a
source add up. Noise is drawn from the codec's tables instead of torch's generator. Widths are those of the random
weights. `pcm` and `source` are made from a mel that numpy draws, and `spoken` from the mel of the tokens.
"""

import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lab.authors.reply_fixture import compute_in_float64
from plugins.chatterbox.lab.random_s3gen import MEANFLOW, NARROW, tensors
from plugins.chatterbox.tests.s3gen.reference import EVERY, LENGTHS, REFERENCE, VOICES, inputs, mel, tokens
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN
from stretto_chatterbox.s3gen import NUM_SILENT, SILENCE, S3GenCodec, S3GenConfig
from tests.codecs.stored_results import write_or_check

SOURCE = Path(os.environ.get("CHATTERBOX_SRC", "chatterbox"))
MISSING = {
    "conformer": ["ConformerBlock"],
    "librosa": [],
    "librosa.filters": ["mel"],
    "torchaudio": [],
    "torchaudio.compliance": [],
    "torchaudio.compliance.kaldi": [],
}  # imports of their modules that are not needed here
FOLDERS = ("", ".models", ".models.s3gen", ".models.s3tokenizer")


def stand_in() -> None:
    """Register modules that do nothing, and the authors' packages without running their code."""
    for name, members in MISSING.items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    for name in FOLDERS:
        module = ModuleType(f"chatterbox{name}")
        module.__path__ = [str(SOURCE.joinpath(*name.split(".")[1:]))]
        sys.modules[module.__name__] = module
    said: Any = sys.modules["chatterbox.models.s3tokenizer"]
    said.S3_SR, said.SPEECH_VOCAB_SIZE, said.S3Tokenizer = 16_000, NARROW.codebook_size, lambda _: nn.Linear(1, 1)


def other(make: Callable[..., Any], **values: Any) -> Callable[..., Any]:
    """Return the function with some arguments replaced."""
    return lambda *args, **given: make(*args, **given | values)


def narrow() -> None:
    """Give the authors' classes the widths of the random weights."""
    stand_in()
    from chatterbox.models.s3gen import s3gen
    from chatterbox.models.s3gen.transformer import upsample_encoder

    shape, estimator, vocoder = NARROW.encoder, NARROW.estimator, NARROW.vocoder
    width = shape.width
    upsample_encoder.PreLookaheadLayer = other(upsample_encoder.PreLookaheadLayer, channels=width)
    upsample_encoder.Upsample1D = other(upsample_encoder.Upsample1D, channels=width, out_channels=width)
    s3gen.UpsampleConformerEncoder = other(
        s3gen.UpsampleConformerEncoder,
        input_size=width,
        output_size=width,
        attention_heads=shape.heads,
        linear_units=shape.inner,
        num_blocks=shape.layers,
    )
    s3gen.ConditionalDecoder = other(
        s3gen.ConditionalDecoder,
        channels=list(estimator.channels),
        n_blocks=estimator.blocks,
        num_mid_blocks=estimator.mids,
        num_heads=estimator.heads,
    )
    s3gen.CausalMaskedDiffWithXvec = other(s3gen.CausalMaskedDiffWithXvec, input_size=width)
    s3gen.HiFTGenerator = other(s3gen.HiFTGenerator, base_channels=vocoder.channels)
    s3gen.ConvRNNF0Predictor = other(s3gen.ConvRNNF0Predictor, cond_channels=vocoder.source.pitch_channels)
    s3gen.CAMPPlus = other(lambda **_: nn.Identity())


def loaded(config: S3GenConfig, weights: dict[str, Tensor]) -> Any:
    """Return the authors' `S3Token2Wav` with weights for a config."""
    from chatterbox.models.s3gen import s3gen

    model = s3gen.S3Token2Wav(meanflow=config.estimator.is_meanflow)
    spoken = {name: tensor for name, tensor in weights.items() if name.startswith(("flow.", "mel2wav."))}
    missing, unknown = model.load_state_dict(spoken, strict=False)
    assert not unknown
    assert all(name.startswith("tokenizer.") for name in missing), missing
    model.eval().double()
    model.mel2wav.stft_window = model.mel2wav.stft_window.double()
    return model


def draw_from(codec: S3GenCodec) -> None:
    """Replace the authors' noise with the codec's tables; the shape distinguishes the flow from the source."""
    tables = {80: codec.noise.double(), 9: codec.source_noise.double()}

    def drawn(like: Tensor) -> Tensor:
        table = tables.get(like.shape[1])
        return torch.zeros_like(like) if table is None else table[None, :, : like.shape[2]]

    torch.randn_like = drawn
    torch.distributions.uniform.Uniform.sample = lambda *_args, **_kwargs: codec.phases[None].clone()


def results(model: Any, turbo: Any, codec: S3GenCodec) -> dict[str, Tensor]:
    """Return the results of the authors' code."""
    found = dict[str, Tensor]()
    for length in LENGTHS:
        pcm, source = model.mel2wav.inference(speech_feat=mel(length), cache_source=torch.zeros(1, 1, 0))
        found |= {f"pcm_{length}": pcm, f"source_{length}": source}
    for name, voice in VOICES.items():
        embedded = model.flow.input_embedding(voice["prompt_token"])
        found[f"encoded_{name}"] = model.flow.encoder(embedded, voice["prompt_token_len"])[0]
        for length in LENGTHS:
            ids, told = tokens(length)[None], dict(voice)
            found[f"mel_{name}_{length}"] = model.flow_inference(ids, ref_dict=dict(told), finalize=True)
            found[f"spoken_{name}_{length}"], _ = model.inference(ids, ref_dict=told)
            prompt = FRAMES_PER_TOKEN * voice["prompt_token"].shape[1]
            # Their loop draws noise for the new frames on its own, here from the same table.
            torch.randn = lambda *shape, at=prompt, **_: codec.noise[None, :, at : at + shape[2]].double()
            silent = torch.cat([ids, torch.full((1, NUM_SILENT), SILENCE)], 1)
            turbo_mel = turbo.flow_inference(silent, ref_dict=dict(voice), n_cfm_timesteps=2, finalize=True)
            pcm, _ = turbo.inference(silent, ref_dict=dict(voice), n_cfm_timesteps=2)
            found |= {f"turbo_mel_{name}_{length}": turbo_mel, f"turbo_pcm_{name}_{length}": pcm}
    return found


def main() -> None:
    torch.set_num_threads(1)
    codec, given, weights = S3GenCodec(NARROW), inputs(), [(each, tensors(each)) for each in (NARROW, MEANFLOW)]
    compute_in_float64()
    narrow()
    model, turbo = (loaded(*each) for each in weights)
    draw_from(codec)
    with torch.inference_mode():
        write_or_check(REFERENCE, EVERY, results(model, turbo, codec), given)


if __name__ == "__main__":
    main()
