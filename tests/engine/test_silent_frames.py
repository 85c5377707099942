"""A reply without its silent first frame sounds the same alone, in a batch, after a preemption, and in any chunks."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_qwen3_codec import write_qwen3_codec
from stretto.codecs.base import Codec, load_codec
from stretto.config import DecoderConfig, EngineConfig
from stretto.decoder.worker import DecoderWorker
from stretto.engine.llm import SpeechLLM
from stretto.records.chunk import LMChunk
from stretto.records.prompt import Prompt
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.testing.checkpoints import make_prompt
from stretto.testing.codec_streams import stream
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS
from tests.fakes import RecordedReply
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import QWEN3_TTS

pytestmark = pytest.mark.engine
FRAME_SAMPLES = 1920
# 4 of 9 replies at once, and room for hardly two of the longest.
TIGHT = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 5, "max_model_len": 128}


def prompt_of(index: int, deterministic: bool = True, silent_frames: int = 1) -> Prompt:
    prompt = make_prompt(QWEN3_TTS, index)
    audio = replace(prompt.sampling.audio, min_rows=30, max_rows=34)
    policy = ChunkPolicy(2, 8, frame_rate=12.5, deterministic=deterministic, silent_frames=silent_frames)
    delivery = replace(prompt.delivery, chunking=policy)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio), delivery=delivery)


async def reply(llm: SpeechLLM, prompt: Prompt) -> list[LMChunk]:
    return [chunk async for chunk in llm.generate(prompt)]


def codes_in(chunks: list[LMChunk]) -> np.ndarray:
    """Return the codes of a reply, [K, T]."""
    return np.concatenate([chunk.codes for chunk in chunks if chunk.codes is not None], 1).astype(np.int64)


def heard(codec: Codec, replies: list[list[LMChunk]], form: OutputForm) -> list[np.ndarray]:
    """Return the samples of replies that a decoder gets at the same time."""
    worker = DecoderWorker(codec, DecoderConfig(max_batch=8))
    answers = [[RecordedReply() for _ in chunks] for chunks in replies]
    for number, (chunks, recorded) in enumerate(zip(replies, answers, strict=True)):
        for chunk, answer in zip(chunks, recorded, strict=True):
            worker.push(f"r{number}", chunk.chunk, chunk.codes, answer, form)
    parts = [[answer.wait().pcm for answer in recorded] for recorded in answers]
    worker.stop()
    return [np.concatenate([part for part in pcm if part is not None]) for pcm in parts]


async def test_reply_without_its_silence_is_the_same_everywhere(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", QWEN3_TTS, "small_qwen3_tts", layers=2)
    write_qwen3_codec(folder / "codec")
    prompts = [prompt_of(index) for index in range(9)]
    with forked_processes():
        llm = SpeechLLM.launch(EngineConfig(folder, {**DEFAULTS, **TIGHT}))
    try:
        alone = [await reply(llm, prompt) for prompt in prompts]
        with_silence = await reply(llm, prompt_of(0, silent_frames=0))
        by_time = await reply(llm, prompt_of(0, deterministic=False))
        assert llm.stats()["preemptions_total"] == 0
        together = await asyncio.gather(*(reply(llm, prompt) for prompt in prompts))
        assert llm.stats()["preemptions_total"] > 0
    finally:
        llm.shutdown()
    codec = load_codec(QWEN3_TTS.codec, folder, num_codebooks=QWEN3_TTS.num_codebooks)
    exact = OutputForm(deterministic=True)
    first = [heard(codec, [chunks], exact)[0] for chunks in alone]
    for name, pcm, others in zip(prompts, first, heard(codec, list(together), exact), strict=True):
        assert np.array_equal(pcm, others), name
    whole = [stream(codec, torch.from_numpy(codes_in(chunks))[None], [999])[0].numpy() for chunks in alone]
    for pcm, with_first in zip(first, whole, strict=True):  # the decoder fades the end of a reply that a limit cuts
        np.testing.assert_allclose(pcm[:-FRAME_SAMPLES], with_first[FRAME_SAMPLES:-FRAME_SAMPLES], rtol=0, atol=1e-5)
    assert np.array_equal(codes_in(with_silence), codes_in(alone[0]))
    assert np.array_equal(codes_in(by_time), codes_in(alone[0]))
    samples, chunked = heard(codec, [with_silence, by_time], OutputForm())
    np.testing.assert_allclose(samples[FRAME_SAMPLES:], first[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(chunked, first[0], rtol=0, atol=1e-5)
