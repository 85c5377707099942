"""CosyVoice 3's decoder: the authors' results, streaming equal to a one-shot decode, voices, and bad input."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plugins.cosyvoice3.lab.random_cosyvoice3 import SEEDS, random_codec, tensors, voice, write_codec
from plugins.cosyvoice3.tests.codec.reference import EVERY, LENGTH, REFERENCE, STEPS, VOICES, inputs, mel, noise, tokens
from stretto.codecs.base import Window
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.recorded_voices import FlowVoice
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, warm_up
from stretto.decoder.worker import DecoderWorker
from stretto.errors import CheckpointError
from stretto.records.chunk import Chunk, Sound
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto_cosyvoice3 import codec as ours
from stretto_cosyvoice3.codec import AHEAD, CHUNK, HISTORY, CosyVoice3Codec, CosyVoice3Config, Prefix, load, prepared
from tests.codecs.stored_results import StoredResults
from tests.fakes import RecordedReply
from tests.tiers import by_night

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
FRAMES = 90
QUERIES = "flow.decoder.estimator.transformer_blocks.0.attn.to_q.weight"


def in_float64(codec: CosyVoice3Codec, *voices: tuple[np.ndarray, ...]) -> CosyVoice3Codec:
    """Return the codec in float64, with voices 1, 2, …."""
    for each in voices:
        codec.add_voice(*each)  # type: ignore[call-arg]
    for recorded in codec.recorded.voices.values():
        recorded.double()
    return codec.double()


def without_mask(codec: CosyVoice3Codec) -> CosyVoice3Codec:
    """Return the codec that decodes complete utterances without the mask, with the same weights."""
    whole = CosyVoice3Codec(codec.config, is_whole=True)
    whole.load_state_dict(codec.state_dict())
    return prepared(whole)


def spoken(codec: CosyVoice3Codec, codes: Tensor, sizes: list[int], voices: list[int]) -> Tensor:
    """Decode codes [B, 1, T] in chunks of the given sizes, in the numbered voices, to samples [B, n]."""
    begin = torch.tensor([[float(each), 0.0] for each in voices], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "initial_state", lambda batch: begin)
        return stream(codec, codes, sizes)


def with_voice(codec: CosyVoice3Codec) -> CosyVoice3Codec:
    """Return the codec, in which utterances have the voice 1."""
    codec.add_voice(*VOICES["short"])
    codec.recorded.voices[1].to(next(codec.parameters()).dtype)
    begun = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    codec.initial_state = lambda batch: begun.repeat(batch, 1)  # type: ignore[method-assign]
    return codec


@torch.inference_mode()
def decoded(codec: CosyVoice3Codec, codes: Tensor) -> Tensor:
    """Decode complete utterances, whose samples blocks do not change."""
    voice = codec.recorded.voices[1]
    return torch.stack([codec.speak(codec.mel(row[0], voice), 0, 0, 2 * codes.shape[2], 0.0)[0] for row in codes])


class TestCosyVoice3(CodecSuite):
    case = CodecCase(
        name="cosyvoice3",
        write=write_codec,
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": 960,
            "num_codebooks": 1,
            "frame_rate": 25,
            "blocks": (28, 50, 100),
            "right_frames": 6,
            "start_frames": 28,
            "codebook_size": 6561,
            "num_voices": 0,
        },
        prepare=with_voice,
        decoded=decoded,
        can_encode=False,
        num_frames=FRAMES,
        tolerance=1e-9,
        float32_tolerance=5e-4,
        weights="codec/model.safetensors",
        config="codec/model.safetensors",
        name_if_missing=lambda name: name.split(".")[0],
        refused_edits=(
            (
                "codec/model.safetensors",
                lambda tensors: tensors.pop("flow.input_embedding.weight"),
                "expected a tensor of 2 dimensions, got none",
            ),
            (
                "codec/model.safetensors",
                lambda tensors: tensors.update({"hift.conv_pre.bias": torch.ones(2, 2)}),
                "expected a tensor of 1 dimensions, got [2, 2]",
            ),
            (
                "codec/model.safetensors",
                lambda tensors: tensors.update({QUERIES: torch.ones(100, 64)}),
                "expected a multiple of 64 rows, got 100",
            ),
        ),
    )


@pytest.fixture(scope="module")
def made() -> StoredResults:
    return StoredResults(REFERENCE, EVERY, inputs())


def published_codec(seed: int, name: str, has_mask: bool = True) -> tuple[CosyVoice3Codec, FlowVoice]:
    """Return the codec in float64 with its voice of a name; weight norms are multiplied out in float64 as well."""
    codec = random_codec(seed=seed)
    codec = in_float64(codec if has_mask else without_mask(codec), VOICES[name])
    codec.noise = noise()
    published = {part: each.double() for part, each in tensors(seed=seed)["hift"].items()}
    codec.hift.load_state_dict(multiply_weight_norm_out(published))
    return codec, codec.recorded.voices[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_pitch_and_samples_of_a_mel_match_the_authors(made: StoredResults, seed: int) -> None:
    codec, _ = published_codec(seed, "short")
    drawn = mel(seed)
    pitch = codec.hift.f0_predictor(drawn)
    assert made.error(f"pitch_{seed}", pitch) < 1e-6
    pcm, _ = codec.speak(drawn, 0, 0, 2 * LENGTH, 0.0)
    assert made.error(f"vocoded_{seed}", pcm) < 1e-6
    assert pcm.square().mean().sqrt() > 1e-2
    for size in STEPS:
        last = 2 * size - 8  # theirs keeps eight frames back
        assert made.error(f"vocoded_{seed}_{size}", codec.speak(drawn[..., : 2 * size], 0, 0, last, 0.0)[0]) < 1e-6


@pytest.mark.parametrize("seed", [SEEDS[0], *by_night(*SEEDS[1:])])
@pytest.mark.parametrize("name", VOICES)
def test_mel_and_samples_match_the_authors(made: StoredResults, seed: int, name: str) -> None:
    """The results are those of a complete utterance with the chunk mask and without it, and of its first blocks.

    An ulp of float64 in the voice's mel moves the samples by 1e-10 of their level, and one of float32 by 1e-4.
    """
    ids = tokens(seed)
    (codec, voice), (whole, whole_voice) = (published_codec(seed, name, has_mask) for has_mask in (True, False))
    masked, prefix = codec.mel(ids, voice), codec._prefix(1, voice)
    assert (prefix is not None) == (name == "long"), "the last chunk of a voice depends on the reply"
    for each in (None, prefix):
        assert made.error(f"mel_{name}_{seed}", codec.mel(ids, voice, prefix=each)) < 1e-6
        for size in STEPS:
            mel = codec.mel(ids[: size + AHEAD], voice, 0, AHEAD, each)
            assert made.error(f"mel_{name}_{seed}_{size}", mel) < 1e-6
    assert made.error(f"whole_mel_{name}_{seed}", masked) > 1e-3, "the mask changes the mel"
    assert made.error(f"whole_mel_{name}_{seed}", whole.mel(ids, whole_voice)) < 1e-6
    assert made.error(f"pcm_mel_{name}_{seed}", codec.speak(masked, 0, 0, 2 * LENGTH, 0.0)[0]) < 1e-6
    assert made.error(f"pcm_whole_mel_{name}_{seed}", spoken(whole, ids[None, None], [LENGTH], [1])) < 1e-6


def test_initial_noise_of_the_flow_is_the_authors(made: StoredResults) -> None:
    assert made.error("noise", random_codec().noise[:, : 2 * LENGTH]) < 1e-4  # torch's differs by 2e-6


def test_samples_do_not_depend_on_which_voices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use of a voice, a later one and one after its eviction give the same bits."""
    codec, codes = random_codec(), random_codes(random_codec(), 1, FRAMES)
    for seed, size in enumerate((75, 100, 125)):
        codec.add_voice(*voice(seed, size))
    chunk = (
        2 * 10 * 2 * 2 * 128 * 50 * 4
    )  # bytes: estimates, steps, layers, keys and values, their width, frames, float32
    convolved = 10 * 2 * 2 * 64 * 30 * 4
    monkeypatch.setattr(ours, "VOICES_BYTES", 6 * chunk)

    def said(number: int) -> Tensor:
        return spoken(codec, codes, chunks_of(25, FRAMES), [number])

    first = [said(number) for number in (1, 2, 3)]
    assert {number: each.num_bytes for number, each in codec._prefixes.items()} == {3: 4 * chunk + convolved}
    assert torch.equal(said(3), first[2])
    for number in (1, 2, 1):
        assert torch.equal(said(number), first[number - 1])
    assert list(codec._prefixes) == [2, 1]
    codec.remove_voice(1)
    assert list(codec._prefixes) == [2]
    assert codec.add_voice(*voice(9, 75)) == 1
    other = said(1)
    assert (other - first[0]).abs().max() > 1e-2
    codec._prefixes.clear()
    assert torch.equal(said(1), other)
    monkeypatch.setattr(ours, "VOICES_BYTES", 2 * chunk)
    codec._prefixes.clear()
    assert (said(3) - first[2]).abs().max() < 5e-4, "frames beyond the limit are decoded with the reply"
    assert codec._prefixes[3].num_frames == 100


def test_batch_with_more_voices_than_are_kept_holds_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a voice are free before those of the next one are computed; otherwise a batch takes twice the limit."""
    codec, held = random_codec(), list[weakref.ref[Tensor]]()
    for seed in range(3):
        codec.add_voice(*voice(seed, 50))
    monkeypatch.setattr(ours, "VOICES_BYTES", 2 * 10 * 2 * 2 * 128 * 50 * 4)  # one chunk, as in the test above
    compute = codec.flow.prefix

    def computed(*inputs: Any) -> Prefix:
        assert all(each() is None for each in held)
        found = compute(*inputs)
        held.extend(weakref.ref(each) for step in found.rows for each in step)
        return found

    monkeypatch.setattr(codec.flow, "prefix", computed)
    spoken(codec, random_codes(codec, 3, FRAMES), [FRAMES], [1, 2, 3])
    assert list(codec._prefixes) == [3]


def test_float32_batch_with_several_voices_matches_single_decode() -> None:
    codec = random_codec()
    for each in VOICES.values():
        codec.add_voice(*each)
    codes = random_codes(codec, 2, FRAMES)
    together = spoken(codec, codes, chunks_of(25, FRAMES), [2, 1])
    for row, number in enumerate((2, 1)):
        whole = spoken(codec, codes[row : row + 1], [FRAMES], [number])[0]
        assert (together[row] - whole).abs().max() < 5e-4
    assert (together[1] - spoken(codec, codes[1:], [FRAMES], [2])[0]).abs().max() > 1e-2


def test_cosyvoice3_history_is_dropped_in_whole_chunks() -> None:
    """Blocks still end at the mask's chunk borders, and samples do not depend on how tokens arrive."""
    codec = random_codec()
    small = CosyVoice3Codec(codec.config, (CHUNK + AHEAD, CHUNK), history=3 * CHUNK)
    small.load_state_dict(codec.state_dict())
    small = in_float64(small.eval().requires_grad_(False), VOICES["short"])
    codes = random_codes(small, 1, 5 * CHUNK + 2)
    first = spoken(small, codes, chunks_of(9, 5 * CHUNK + 2), [1])
    torch.testing.assert_close(spoken(small, codes, [60, 80], [1]), first, atol=1e-9, rtol=0)
    whole = small.speak(small.mel(codes[0, 0], small.recorded.voices[1]), 0, 0, 10 * CHUNK + 4, 0.0)[0]
    exact = (3 * CHUNK - AHEAD) * 960
    torch.testing.assert_close(first[0, :exact], whole[:exact], atol=1e-9, rtol=0)
    assert (first[0, exact:] - whole[exact:]).abs().max() > 1e-4


def test_decoder_uses_the_voice_of_a_recording() -> None:
    codec = random_codec()
    codes = random_codes(codec, 1, 40)
    worker = DecoderWorker(codec, DecoderConfig(codec="cosyvoice3", max_batch=4, stop_timeout_s=60))
    tokens_, mel, x_vector = VOICES["short"]
    sounds = {
        "fits": Sound.from_arrays(tokens_, mel, x_vector),
        "odd": Sound.from_arrays(tokens_[:24], mel[:48], x_vector),
        "code": Sound.from_arrays(tokens_ + 6561, mel, x_vector),
        "mel": Sound.from_arrays(tokens_, mel[1:], x_vector),
    }
    try:
        replies = {}
        for name, sound in sounds.items():
            for index, (start, stop) in enumerate([(0, 30), (30, 40)]):
                reply = replies[name, index] = RecordedReply(None, (name, index))
                chunk = Chunk(index, Segment.AUDIO, is_final=stop == 40, sound=None if index else sound)
                worker.push(name, chunk, codes[0, :, start:stop].numpy(), reply, OutputForm())
        parts = [replies["fits", index].wait().pcm for index in (0, 1)]
        assert [len(part) for part in parts] == [22 * 960, 18 * 960]
        whole = spoken(codec, codes, [40], [1])[0].numpy()
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=5e-4)
        said = {name: str(replies[name, 0].wait().error) for name in sounds}
        assert "chunk.sound.tokens: expected 25, 50, … 750 codes, got 24 codes" in said["odd"]
        assert "chunk.sound.tokens: expected codes in [0, 6561)" in said["code"]
        assert "chunk.sound.mel: expected shape [50, 80], got [49, 80]" in said["mel"]
    finally:
        worker.stop()


def test_decoder_warm_up_needs_no_voice() -> None:
    assert (
        warm_up(HostLauncher(random_codec(), "float32"), random_codec(), ChunkPolicy(), max_batch=1, seconds=60.0) > 0
    )


def test_written_cosyvoice3_codec_loads(tmp_path: Path) -> None:
    loaded = load(write_codec(tmp_path))
    made = random_codec()
    assert loaded.config == made.config
    stored = multiply_weight_norm_out(load_file(tmp_path / "codec" / "model.safetensors"))
    assert CosyVoice3Config.from_shapes({name: tuple(each.shape) for name, each in stored.items()}) == made.config
    codes, begin = random_codes(made, 1, 28), torch.zeros(1, dtype=torch.int64)
    for codec in (loaded, made):
        codec.add_voice(*voice(0, 25))
    windows = [
        codec.decode(Window(codes, 0, 6, begin, torch.tensor([[1.0, 0.0]]).double())) for codec in (loaded, made)
    ]
    torch.testing.assert_close(windows[0][0], windows[1][0], atol=1e-4, rtol=0)
    assert windows[0][0].shape == (1, 22 * 960)


def test_chunk_mask_can_be_disabled(tmp_path: Path) -> None:
    path = write_codec(tmp_path) / "codec" / "config.json"
    path.write_text('{"model_type": "cosyvoice3", "whole": true}')
    loaded = load(tmp_path)
    assert (loaded.spec.max_frames, loaded.spec.blocks, loaded.spec.right_frames) == (HISTORY, (), 0)
    codes = random_codes(loaded, 1, 60)
    loaded.add_voice(*voice(0, 25))
    expected = without_mask(random_codec())
    expected.add_voice(*voice(0, 25))
    heard = [spoken(codec, codes, [60], [1]) for codec in (loaded, expected)]
    torch.testing.assert_close(heard[0], heard[1], atol=1e-4, rtol=0)
    path.write_text('{"whole": 1}')
    with pytest.raises(CheckpointError, match="whole: expected true or false, got 1"):
        load(tmp_path)
