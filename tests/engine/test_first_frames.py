"""First frames that the engine's process decodes have the decoder's samples, and come before their rows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.releases.random_qwen3_codec import write_qwen3_codec
from stretto.codecs.base import CodecSpec, Stateful, Windowed, load_codec
from stretto.config import EngineConfig
from stretto.engine.llm import SpeechLLM
from stretto.engine.utterance import num_first_frames, samples_of
from stretto.engine.worker.first_frames import MAX_BATCH
from stretto.families.tiny.family import BEGIN_AUDIO, TINY
from stretto.family.base import Family
from stretto.records.chunk import Sound
from stretto.records.prompt import Prompt
from stretto.streams.chunking import ChunkPolicy, DecoderLoad, Pacer
from stretto.testing.checkpoints import make_prompt
from stretto.testing.codec_streams import stream
from stretto.testing.conformance import num_preemptions
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS, Engine
from tests.engine.test_bundled import FOLDER, speak
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import BAGPIPER, CSM, QWEN3_TTS
from tests.speech_families import LATENTS, THREE_ROWS
from tests.tiers import ASYNC_BY_DAY

ON: dict[str, Any] = {"additional_config": {"first_chunk": "float32"}}
# 4 of 9 replies at once, and room for hardly two of the longest.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 5}
LENGTH = 128


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen3_tts"), QWEN3_TTS, "small_qwen3_tts", layers=2)
    write_qwen3_codec(folder / "codec")
    return folder


def prompt_of(index: int) -> Prompt:
    """Return a prompt whose reply has at least 30 frames, the first one or two of which the engine decodes."""
    prompt = make_prompt(QWEN3_TTS, index)
    audio = replace(prompt.sampling.audio, min_rows=30, max_rows=34)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio), num_first_frames=1 + index % 2)


def run(engine: Engine, prompts: dict[str, Prompt]) -> tuple[dict[str, np.ndarray], dict[str, list[list[int]]], int]:
    """Generate replies; return codes and samples of each, its rows, and the number of preemptions."""
    sent, has_rows, step = dict[str, np.ndarray](), set[str](), engine.step

    def watched() -> Any:
        outputs = step()
        for each in outputs.values():
            for output in each.outputs:
                if output.pooling_output is not None:
                    assert output.request_id not in sent
                    sent[output.request_id] = output.pooling_output.numpy()
                elif output.new_token_ids:
                    has_rows.add(output.request_id)
        return outputs

    engine.step = watched  # type: ignore[method-assign]
    try:
        answers = engine.run(prompts)
    finally:
        del engine.step
    assert has_rows == set(prompts)
    return sent, {name: answer.rows for name, answer in answers.items()}, num_preemptions(answers)


def first_codes(family: Family, rows: list[list[int]], num_frames: int) -> np.ndarray:
    """Return the codes of a reply's first frames, [K, T]."""
    layout = family.layout
    start = 1 + [row[0] for row in rows].index(BEGIN_AUDIO) if family is TINY else 0
    return np.array(
        [
            [
                rows[start + frame + layout.delays[stream]][stream] - layout.audio[stream].start
                for frame in range(num_frames)
            ]
            for stream in layout.codebook_streams
        ]
    )


def decoded(folder: Path, family: Family, codes: np.ndarray) -> np.ndarray:
    """Return the samples of a reply that begins with these codes, as the decoder computes them."""
    codec = load_codec(family.codec, folder, num_codebooks=family.num_codebooks)
    return stream(codec, torch.from_numpy(codes)[None], [codes.shape[1]])[0].numpy()


@pytest.mark.engine
@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_samples_equal_the_decoders_bit_by_bit(checkpoint: Path, is_async: bool) -> None:
    """Alone; in a batch, products of other sizes may round differently."""
    with Engine(checkpoint, async_scheduling=is_async, max_model_len=LENGTH, **ON) as engine:
        for index in range(2):
            sent, rows, _ = run(engine, {"one": prompt_of(index)})
            codes = first_codes(QWEN3_TTS, rows["one"], 1 + index)
            samples = np.frombuffer(samples_of(sent["one"], codes), np.float32)
            assert np.array_equal(samples, decoded(checkpoint, QWEN3_TTS, codes))
            assert np.abs(samples).max() > 0
        prompts = {f"r{index}": prompt_of(index) for index in range(MAX_BATCH + 3)}
        sent, rows, _ = run(engine, prompts)
        assert sent.keys() == prompts.keys()
        for name, prompt in prompts.items():
            codes = first_codes(QWEN3_TTS, rows[name], prompt.num_first_frames)
            samples = np.frombuffer(samples_of(sent[name], codes), np.float32)
            np.testing.assert_allclose(samples, decoded(checkpoint, QWEN3_TTS, codes), rtol=0, atol=1e-5)
        assert engine.is_clean()
        assert not engine.model_state.first_frames._waiting
        without = {name: replace(prompt, num_first_frames=0) for name, prompt in prompts.items()}
        others, same, _ = run(engine, without)
        assert not others
        assert same == rows


@pytest.mark.engine
def test_preempted_replies_are_left_to_the_decoder(checkpoint: Path) -> None:
    """A reply sends the samples of its own codes, or none."""
    prompts = {f"r{index}": prompt_of(index) for index in range(9)}
    with Engine(checkpoint, max_model_len=LENGTH, **TIGHT, **ON) as engine:
        sent, rows, preempted = run(engine, prompts)
        assert engine.is_clean()
    assert preempted > 0
    assert sent
    for name, numbers in sent.items():
        assert samples_of(numbers, first_codes(QWEN3_TTS, rows[name], prompts[name].num_first_frames)), name


@pytest.mark.engine
def test_frames_with_delays_after_a_text_are_decoded_for_the_bundled_model() -> None:
    """Guided and unguided replies; a code of the second frame comes eight rows later."""
    prompts = {f"r{guidance}": speak("cat", "heart", 3, guidance) for guidance in (1.0, 2.0)}
    prompts = {name: replace(prompt, num_first_frames=2) for name, prompt in prompts.items()}
    with Engine(FOLDER, max_model_len=512, **ON) as engine:
        sent, rows, _ = run(engine, prompts)
    assert sent.keys() == prompts.keys()
    for name, numbers in sent.items():
        codes = first_codes(TINY, rows[name], 2)
        samples = np.frombuffer(samples_of(numbers, codes), np.float32)
        np.testing.assert_allclose(samples, decoded(FOLDER, TINY, codes), rtol=0, atol=1e-6)


@pytest.mark.engine
async def test_first_chunk_comes_with_its_samples() -> None:
    """They arrive from the engine's process before the chunk is sent, whose other codes have none."""
    prompt = speak("cat", "heart", 3, 1.0)
    policy = ChunkPolicy(2, 8, frame_rate=25.0, silent_frames=1)
    prompt = replace(prompt, delivery=replace(prompt.delivery, chunking=policy))
    pacer = Pacer(policy, lambda: DecoderLoad(frame_gap_s=0.001), clock=lambda: 0.0)  # frames are ready at once
    with forked_processes():
        llm = SpeechLLM.launch(EngineConfig(FOLDER, DEFAULTS, first_chunk="float32"))
    try:
        chunks = [chunk async for chunk in llm.generate(prompt, pacer=pacer)]
    finally:
        llm.shutdown()
    first, *others = [chunk for chunk in chunks if chunk.codes is not None]
    assert first.codes is not None
    assert (first.codes.shape[1], first.chunk.num_silent_frames) == (2, 1)
    samples = np.frombuffer(first.chunk.samples, np.float32)
    assert np.array_equal(samples, decoded(FOLDER, TINY, first.codes))
    assert others
    assert not any(chunk.chunk.samples for chunk in others)


def test_samples_of_other_codes_are_not_used() -> None:
    codes = np.arange(8).reshape(4, 2)
    numbers = np.concatenate([codes.ravel(), [0.25, -0.5]]).astype(np.float32)
    assert np.frombuffer(samples_of(numbers, codes), np.float32).tolist() == [0.25, -0.5]
    assert samples_of(numbers, codes + 1) == b""
    assert samples_of(numbers, codes[:, :1]) == b"", "the chunk has fewer frames"
    assert samples_of(numbers, np.zeros((4, 9), np.int64)) == b""


def plain(**changes: Any) -> Prompt:
    policy = changes.pop("policy", ChunkPolicy(2, 12))
    prompt = make_prompt(QWEN3_TTS, 0)
    return replace(prompt, delivery=replace(prompt.delivery, chunking=policy), **changes)


def prompts_without() -> Iterator[Prompt]:
    """Yield prompts of replies whose first chunk the decoder alone can decode."""
    yield plain(num_reference_rows=2)
    yield plain(voice=1)
    yield plain(sound=Sound(b"0000", b"", 1, b""))
    for policy in (
        ChunkPolicy(3, 12),
        ChunkPolicy(2, 12, silent_frames=2),
        ChunkPolicy(2, 12, deterministic=True),
        ChunkPolicy(2, 12, held_frames=1),
        ChunkPolicy(2, 12, blocks=(2, 4)),
    ):
        yield plain(policy=policy)


def test_first_frames_are_those_of_short_first_chunks_without_context() -> None:
    policies = (ChunkPolicy(1, 12), ChunkPolicy(2, 12), ChunkPolicy(2, 12, silent_frames=1))
    assert [num_first_frames(plain(policy=policy)) for policy in policies] == [1, 2, 2]
    assert [num_first_frames(prompt) for prompt in prompts_without()] == [0] * 8


@pytest.mark.parametrize(
    "changes",
    [
        {"streaming": Windowed(1, 1)},
        {"tail_samples": -5},
        {"are_latents": True},
        {"num_voices": 2},
        {"reads_on_host": True},
    ],
    ids=str,
)
def test_codecs_that_need_more_than_the_first_codes_are_known(changes: dict[str, Any]) -> None:
    spec = CodecSpec("any", 24_000, 1920, 4, 8, Stateful())
    assert spec.decodes_first
    assert not replace(spec, **changes).decodes_first


def test_families_with_a_frame_of_codes_in_each_row_have_plain_frames() -> None:
    families = (QWEN3_TTS, TINY, CSM, BAGPIPER, LATENTS, THREE_ROWS)
    assert [family.has_plain_frames for family in families] == [True, True, True, True, False, False]
