"""Write `reference.npz` for the tests: results of the authors' code with random weights.

    INDEX_TTS_SRC=index-tts PYTHONPATH=.:python_backend python -m plugins.indextts2.tests.codec.authors [--check]

INDEX_TTS_SRC is a clone of https://github.com/index-tts/index-tts at ee40fa7. All runs in float64. Widths are those of
the random weights, and noise comes from the codec's table instead of torch's generator. w2v-BERT is that of the
installed transformers, with one layer more than the release needs; recordings are resampled, and filter banks computed,
by our functions, which have tests against torchaudio's.
"""

import itertools
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lab.authors.reply_fixture import compute_in_float64
from plugins.indextts2.lab import random_acoustics
from plugins.indextts2.lab.random_acoustics import NARROW, STATES, SUMMARY
from plugins.indextts2.tests.codec.reference import EVERY, LENGTHS, REFERENCE, VOICES, codes, inputs, mel, recording
from stretto.encoders.voice_spectra import TOKEN_RATE_HZ, fbank, mel_filters, resample_by_sinc
from stretto_indextts2.convert_codec import VOCODER
from stretto_indextts2.family import SAMPLE_RATE
from stretto_indextts2.flow import NUM_MELS, NUM_REGULATOR_LAYERS, STYLE, WAVE_KERNEL
from tests.codecs.stored_results import write_or_check

SOURCE = Path(os.environ.get("INDEX_TTS_SRC", "index-tts"))
# imports of their modules that are not needed here, with the names that are imported from them
MISSING = {
    "munch": ["Munch"],
    "librosa": [],
    "librosa.filters": ["mel"],
    "librosa.util": ["normalize"],
    "scipy": [],
    "scipy.io": [],
    "scipy.io.wavfile": ["read", "write"],
    "torchaudio": [],
    "torchaudio.functional": [],
    "torchaudio.functional.functional": ["_hz_to_mel", "_mel_to_hz"],
    "matplotlib": ["use"],
    "matplotlib.pylab": [],
    "transformers.utils.model_parallel_utils": ["assert_device_map", "get_device_map"],
    "indextts.gpt.transformers_gpt2": ["GPT2Model"],
    "indextts.s2mel.dac.nn.quantize": ["VectorQuantize"],
    "indextts.utils.tokenizer": [],
    "indextts.utils.typical_sampling": ["TypicalLogitsWarper"],
    "indextts.utils.common": [],
    "indextts.s2mel.modules.bigvgan.meldataset": ["MAX_WAV_VALUE"],
}


def stand_in() -> None:
    """Register modules that do nothing in place of those that are not needed."""
    sys.path.insert(0, str(SOURCE))
    for name, members in MISSING.items():
        module = ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module
    gpt2: Any = sys.modules["indextts.gpt.transformers_gpt2"]
    gpt2.GPT2PreTrainedModel = nn.Module
    tokens: Any = sys.modules["indextts.utils.tokenizer"]
    tokens.LANGUAGE_DICT = {}
    drawing: Any = sys.modules["matplotlib"]
    drawing.use = str
    common: Any = sys.modules["indextts.utils.common"]
    common.make_pad_mask = lambda lengths, most: torch.arange(most)[None] >= lengths[:, None]


def loaded(module: nn.Module, tensors: dict[str, Tensor]) -> Any:
    """Return a module of the authors with published tensors, in float64."""
    missing, unknown = module.load_state_dict(tensors, strict=False)
    unused = (
        "embedding",
        "mask",
        "x_embedder",
        "cond_embedder",
        "freqs",
        "input_pos",
        "skip_in_linear",
        "decoder",
        "pe",
        "filter",
        "head",
        "batches_tracked",
    )
    assert not unknown, unknown
    assert all(any(part in name for part in unused) for name in missing), missing
    return module.eval().double()


def language_model() -> Any:
    """Return the authors' `UnifiedVoice`."""
    from indextts.gpt import model_v2

    make_conformer = model_v2.ConformerEncoder
    make_perceiver = model_v2.PerceiverResampler
    model_v2.ConformerEncoder = lambda **sizes: make_conformer(**{**sizes, "input_size": STATES})
    model_v2.PerceiverResampler = lambda dim, **sizes: make_perceiver(SUMMARY if dim == 1024 else dim, **sizes)
    section = {
        "output_size": 32,
        "linear_units": 48,
        "attention_heads": 2,
        "input_layer": "conv2d2",
        "perceiver_mult": 2,
    }
    gpt = NARROW.gpt
    model = model_v2.UnifiedVoice(
        layers=gpt.layers,
        model_dim=gpt.width,
        heads=gpt.heads,
        max_text_tokens=gpt.num_text_positions - 2,
        max_mel_tokens=gpt.num_positions - 3,
        number_text_tokens=gpt.num_text_ids - 1,
        number_mel_codes=gpt.num_code_ids,
        start_mel_token=gpt.start_of_speech,
        stop_mel_token=gpt.start_of_speech + 1,
        checkpointing=False,
        condition_num_latent=random_acoustics.ROWS,
        condition_type="conformer_perceiver",
        condition_module={**section, "num_blocks": 2},
        emo_condition_module={**section, "num_blocks": 1},
    )
    model.emovec_layer = nn.Linear(SUMMARY, gpt.width)
    return loaded(model, random_acoustics.latents_tensors() | random_acoustics.gpt_tensors())


def acoustic_model(files: dict[str, dict[str, Tensor]]) -> Any:
    """Return the authors' length regulator, flow and layers of the latents."""
    from indextts.s2mel.modules.flow_matching import CFM
    from indextts.s2mel.modules.length_regulator import InterpolateRegulator

    flow = NARROW.flow
    transformer = SimpleNamespace(
        hidden_dim=flow.width,
        num_heads=flow.heads,
        depth=flow.layers,
        class_dropout_prob=0.1,
        in_channels=NUM_MELS,
        style_condition=True,
        final_layer_type="wavenet",
        content_dim=flow.channels,
        content_codebook_size=8,
        content_type="discrete",
        is_causal=False,
        long_skip_connection=True,
        uvit_skip_connection=True,
    )
    wavenet = SimpleNamespace(
        hidden_dim=flow.width,
        num_layers=flow.wave_layers,
        kernel_size=WAVE_KERNEL,
        dilation_rate=1,
        p_dropout=0.2,
        style_condition=True,
    )
    style = SimpleNamespace(dim=STYLE)
    cfm = CFM(
        SimpleNamespace(DiT=transformer, wavenet=wavenet, style_encoder=style, dit_type="DiT", reg_loss_type="l1")
    )
    cfm = loaded(cfm, files["cfm"])
    cfm.estimator.setup_caches(max_batch_size=1, max_seq_length=8192)
    regulator = InterpolateRegulator(flow.channels, [1] * NUM_REGULATOR_LAYERS, in_channels=flow.semantic)
    widths = [NARROW.gpt.width, *NARROW.projections, flow.semantic]
    layers = nn.Sequential(*(nn.Linear(*sizes) for sizes in itertools.pairwise(widths)))
    return SimpleNamespace(
        cfm=cfm,
        regulator=loaded(regulator, files["length_regulator"]),
        gpt_layer=loaded(layers, files["gpt_layer"]),
    )


def semantic_codec(tensors: dict[str, Tensor]) -> Any:
    """Return the authors' copy of MaskGCT's semantic codec."""
    from indextts.utils.maskgct.models.codec.kmeans.repcodec_model import RepCodec

    sizes = {"hidden_size": STATES, "codebook_dim": NARROW.code_width, "codebook_size": NARROW.codebook_size}
    return loaded(RepCodec(**sizes, vocos_dim=24, vocos_intermediate_dim=40, vocos_num_layers=2), tensors)


def vocoder(tensors: dict[str, Tensor]) -> Any:
    """Return NVIDIA's BigVGAN."""
    from indextts.s2mel.modules.bigvgan.bigvgan import BigVGAN
    from indextts.s2mel.modules.bigvgan.env import AttrDict

    sizes = {"num_mels": NUM_MELS, "upsample_initial_channel": NARROW.vocoder_channels}
    return loaded(BigVGAN(AttrDict(VOCODER | sizes)), tensors)


def speaker_encoder(tensors: dict[str, Tensor]) -> Any:
    """Return 3D-Speaker's CAM++."""
    from indextts.s2mel.modules.campplus.DTDNN import CAMPPlus

    return loaded(CAMPPlus(feat_dim=80, embedding_size=STYLE), tensors)


def speech_model(tensors: dict[str, Tensor]) -> Any:
    """Return transformers' w2v-BERT with 18 layers."""
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    config = Wav2Vec2BertConfig(
        hidden_size=STATES, num_hidden_layers=18, num_attention_heads=2, intermediate_size=48, apply_spec_augment=False
    )
    model = Wav2Vec2BertModel(config)
    missing, unknown = model.load_state_dict(tensors, strict=False)
    assert not unknown
    assert all(".17." in name or name == "masked_spec_embed" for name in missing), missing
    return model.eval().double()


def decoded(gpt: Any, acoustics: Any, semantic: Any, bigvgan: Any, noise: Tensor) -> dict[str, Tensor]:
    """Return the results of the steps of `IndexTTS2.infer` that decode codes."""
    results = {f"pcm_{length}": bigvgan(mel(length)) for length in LENGTHS}
    for name, voice in VOICES.items():
        tokens, prompt_mel, style, text, rows = (torch.from_numpy(array) for array in voice)
        num_prompt = len(prompt_mel)
        known = semantic.quantizer.vq2emb(tokens[None, None].long()).transpose(1, 2)
        frames = torch.LongTensor([num_prompt])
        condition = acoustics.regulator(known, ylens=frames, n_quantizers=3, f0=None)[0]
        for length in LENGTHS:
            ids = codes(length)[None]
            latent = gpt(
                rows.double().view(1, -1, NARROW.gpt.width),
                text[None].long(),
                torch.tensor([len(text)]),
                ids.clone(),
                torch.tensor([length]),
                None,
                emo_vec=torch.zeros(1, NARROW.gpt.width),
                use_speed=torch.zeros(1, dtype=torch.long),
            )
            vectors = semantic.quantizer.vq2emb(ids[:, None]).transpose(1, 2) + acoustics.gpt_layer(latent)
            lengths = (torch.LongTensor([length]) * 1.72).long()
            goal = acoustics.regulator(vectors, ylens=lengths, n_quantizers=3, f0=None)[0]
            goal = torch.cat([condition, goal], 1)
            padded_noise = torch.cat([noise.new_zeros(1, 80, num_prompt), noise[None]], 2)
            torch.randn = lambda shape, values=padded_noise, **_: values[..., : shape[2]]
            total = torch.LongTensor([goal.shape[1]])
            reply_mel = acoustics.cfm.inference(
                goal, total, prompt_mel.T[None].double(), style[None].double(), None, 25, inference_cfg_rate=0.7
            )[..., num_prompt:]
            results |= {
                f"latents_{name}_{length}": latent,
                f"mel_{name}_{length}": reply_mel,
                f"spoken_{name}_{length}": bigvgan(reply_mel),
            }
    return results


def prepared(name: str) -> tuple[Tensor, Tensor]:
    """Return a recording at 16 kHz, [1, n], and its filter bank, [T, 80], by our functions."""
    at16 = resample_by_sinc(torch.from_numpy(recording(name))[None], SAMPLE_RATE, TOKEN_RATE_HZ)
    return at16, fbank(at16[0])


def encoded(
    gpt: Any,
    semantic: Any,
    speech: Any,
    speaker: Any,
    statistics: list[Tensor],
    recordings: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Return the results of the steps of `IndexTTS2.infer` that read recordings.

    Args:
        recordings: Results of `prepared` by name.
    """
    from indextts.s2mel.modules import audio
    from transformers import SeamlessM4TFeatureExtractor

    extract = SeamlessM4TFeatureExtractor(sampling_rate=TOKEN_RATE_HZ, padding_value=1)
    audio.librosa_mel_fn = lambda sr, n_fft, n_mels, fmin, fmax: mel_filters(sr, n_fft, n_mels, sr / 2).numpy()
    mean, variance = (values.double() for values in statistics)
    results = dict[str, Tensor]()
    for name, (at16, bands) in recordings.items():
        samples = torch.from_numpy(recording(name))[None]
        features = extract(at16, sampling_rate=TOKEN_RATE_HZ, return_tensors="pt")
        output = speech(features["input_features"].double(), features["attention_mask"], output_hidden_states=True)
        states = (output.hidden_states[17] - mean) / torch.sqrt(variance)
        sizes = torch.tensor([1024])  # the authors pass the width; no recording has as many states
        tokens, _ = semantic.quantize(states)
        bands = bands.double()
        log_mel = audio.mel_spectrogram(samples.double(), 1024, 80, SAMPLE_RATE, 256, 1024, 0, None)
        results |= {
            f"states_{name}": states,
            f"rows_{name}": gpt.get_conditioning(states.transpose(1, 2), sizes),
            f"emotion_{name}": gpt.get_emovec(states, sizes),
            f"tokens_{name}": tokens.double(),
            f"style_{name}": speaker((bands - bands.mean(0, keepdim=True))[None]),
            f"log_mel_{name}": log_mel.transpose(1, 2),
        }
    return results


def main() -> None:
    torch.set_num_threads(1)
    inputs_by_name = inputs()
    noise = random_acoustics.codec().noise.double()
    files = random_acoustics.published_files()
    recordings = {name: prepared(name) for name in VOICES}
    compute_in_float64()
    stand_in()
    gpt = language_model()
    semantic = semantic_codec(files["semantic"])
    statistics = [files["statistics"][name] for name in ("mean", "var")]
    with torch.inference_mode():
        results = decoded(gpt, acoustic_model(files), semantic, vocoder(files["vocoder"]), noise)
        speech = speech_model(files["speech"])
        results |= encoded(gpt, semantic, speech, speaker_encoder(files["speaker"]), statistics, recordings)
        write_or_check(REFERENCE, EVERY, results, inputs_by_name)


if __name__ == "__main__":
    main()
