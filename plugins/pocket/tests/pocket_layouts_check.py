"""Compare small random releases in transformers' layout with transformers' own classes.

    python -m plugins.pocket.tests.pocket_layouts_check

transformers 5.23.0 must be importable. The classes must read the releases of `plugins.pocket.tests.pocket_layouts`
without a missing or unknown tensor, and the folders that they save must be converted to the same files as the authors'
layout. Pocket TTS's class must generate the latents of the authors' code (`tests/data/pocket_tts_replies.npz`), and the
codec's class the samples and the latents of this codec.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import compute_in_float64
from plugins.pocket.lab.phonon_replies import noise_of
from plugins.pocket.lab.pocket_tts_replies import NO_END, SEED
from plugins.pocket.lab.random_pocket import NUM_WORDS, recording
from plugins.pocket.tests.pocket_layouts import differing_files, write_phonon, write_pocket
from plugins.pocket.tests.pocket_release import Reply, reply
from stretto.codecs.base import Window
from stretto.convert.command import main as convert
from stretto_pocket.codec import load
from tests.engine.nudges import assert_latents_near

UNUSED = ("loss_weighting.", "latent_stats_num_updates")  # tensors for training
NUM_FRAMES, TOLERANCE = 40, 1e-5  # float32 on both sides; the largest difference is 1e-6


def opened(kind: Any, folder: Path) -> Any:
    """Return the model of a class with the tensors in a folder, all of which it must know and find."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    missing = [name for name in report["missing_keys"] if not name.startswith(UNUSED)]
    unknown = [name for name in report["unexpected_keys"] if not name.startswith(UNUSED)]
    assert not [*missing, *unknown, *report["mismatched_keys"]], (folder, missing, unknown)
    return model.eval()


def convert_both(root: Path, family: str, authors: Path, folder: Path, codec: Path) -> None:
    """Convert a release in both layouts; the checkpoints must be the same."""
    assert convert([family, "--model", str(authors), "--out", str(root / "one")]) == 0
    assert convert([family, "--model", str(folder), "--codec", str(codec), "--out", str(root / "other")]) == 0
    assert not differing_files(root / "one", root / "other")


def saved(model: Any, folder: Path, beside: Path, **options: Any) -> Path:
    """Save a model with its class, with the voices, the tokenizer and the generation config of another folder."""
    shutil.copytree(beside, folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, **options)
    shutil.copy(beside / "generation_config.json", folder)
    return folder


@torch.no_grad()
def check_latents(model: Any, expected: Reply) -> None:
    """Compare the latents in the voice of a recording with those of the authors' code."""
    config = model.config
    voice = torch.from_numpy(expected.voice).reshape(-1, NUM_WORDS)[None].double()
    head = [config.audio_prompt_bos_token_id, *[config.audio_prompt_token_id] * voice.shape[1]]
    prompt = [*head, *expected.tokens, config.audio_bos_token_id]
    latents, sample = list[torch.Tensor](), model.sample_latent

    def sampled(*call: Any) -> torch.Tensor:
        latents.append(sample(*call))
        return latents[-1]

    model.sample_latent = sampled
    with noise_of(SEED, len(prompt)):
        model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            audio_prompt_latents=voice,
            audio_prompt_latents_mask=torch.ones(voice.shape[:2], dtype=torch.long),
            do_sample=True,
            temperature=0.3,
            num_flow_steps=1,
            eos_threshold=NO_END,
            frames_after_eos=0,
            max_new_tokens=len(expected.cloned),
        )
    assert_latents_near(torch.cat(latents).float().numpy(), expected.cloned, expected.cloned_nudged)


@torch.no_grad()
def check_codec(model: Any, checkpoint: Path, has_encoder: bool) -> None:
    """Compare samples and the latents of a recording with those of this codec."""
    codec = load(checkpoint)
    latents = np.random.default_rng(3).standard_normal((1, NUM_FRAMES, NUM_WORDS)).astype(np.float32)
    words = torch.from_numpy(latents.transpose(0, 2, 1).copy().view(np.int32))
    pcm, _ = codec.decode(Window(words, 0, 0, torch.zeros(1, dtype=torch.long), codec.initial_state(1)))
    found = model.decode(torch.from_numpy(latents) * codec.emb_std + codec.emb_mean).audio_values[0, 0].clamp(-1, 1)
    faded = codec.spec.sample_rate // 200
    worst = float((pcm[0] - found)[faded:].abs().max())
    assert worst < TOLERANCE, worst
    if has_encoder:
        samples = recording()[: len(recording()) // 1920 * 1920]
        own = codec.encode(samples).view(np.float32).T
        other = model.encode(torch.from_numpy(samples)[None, None]).latents[0].numpy()
        worst = float(np.abs(own - other).max())
        assert worst < TOLERANCE, worst


def main() -> None:
    """Make the comparisons, and print one line for each."""
    from transformers import (
        GradiumPhononTTSForConditionalGeneration,
        PocketTTSAudioTokenizerModel,
        PocketTTSForConditionalGeneration,
    )

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        authors, folder, codec_folder = write_pocket(root / "pocket")
        model = opened(PocketTTSForConditionalGeneration, folder)
        codec = opened(PocketTTSAudioTokenizerModel, codec_folder)
        own = saved(model, root / "pocket saved", folder), saved_codec(codec, root / "pocket codec")
        convert_both(root / "pocket", "pocket-tts", authors, *own)
        check_codec(codec, root / "pocket" / "other", has_encoder=True)
        print(json.dumps({"same": "pocket-tts"}))
        for kind, is_native in (("small", True), ("small", False), ("steps", True)):
            place = root / f"phonon {kind} {is_native}"
            authors, folder, codec_folder = write_phonon(place, kind, is_native)
            phonon = opened(GradiumPhononTTSForConditionalGeneration, folder)
            codec = opened(PocketTTSAudioTokenizerModel, codec_folder)
            written = saved(phonon, place / "saved", folder, save_original_format=not is_native)
            convert_both(place, "phonon", authors, written, saved_codec(codec, place / "saved codec"))
            check_codec(codec, place / "other", has_encoder=False)
            print(json.dumps({"same": f"phonon {kind}", "transformers' names": is_native}))
        expected = reply("english")
        compute_in_float64()
        check_latents(model.double(), expected)
        print(json.dumps({"latents": "those of the authors' code"}))


def saved_codec(codec: Any, folder: Path) -> Path:
    """Save a codec with its class, and return the folder."""
    codec.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
