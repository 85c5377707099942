"""Replies to audio through the model's own encoder equal those of Hugging Face's encoder and backbone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.family.audio_format import AudioFormat
from stretto.records.prompt import InputAudio, Prompt
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.speech_families import EIGHT_STREAMS

pytestmark = pytest.mark.engine
CONFIG = {
    "num_mel_bins": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "d_model": 32,
    "downsample_hidden_size": 8,
    "output_dim": 24,
    "max_source_positions": 100,
    "n_window": 50,
    "n_window_infer": 800,
    "conv_chunksize": 500,
    "activation_function": "gelu",
}
FORMAT = AudioFormat.from_config({"audio_config": CONFIG})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(folder, EIGHT_STREAMS, "eight_streams", audio_config=CONFIG)


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceModel:
    return ReferenceModel(folder, EIGHT_STREAMS, 160)


@pytest.fixture(scope="module")
def tight(folder: Path) -> Iterator[Engine]:
    """Return an engine with little memory, which chunks prompts and preempts replies."""
    limits = {"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9, "max_model_len": 160}
    with Engine(folder, **limits) as engine:
        yield engine
        assert engine.is_clean()
        assert not engine.model_state.input_embeddings._of_slot


def hearing(index: int, num_frames: int, task: str, **changes: object) -> Prompt:
    """Return prompt number `index` with `num_frames` frames of audio in the middle."""
    prompt = make_prompt(EIGHT_STREAMS, index, task, **changes)
    num_rows = FORMAT.num_rows(num_frames)
    features = np.random.default_rng(index).standard_normal((num_frames, 16)).astype(np.float32)
    placeholders = np.zeros((num_rows, prompt.rows.shape[1]), np.int32)
    rows = np.concatenate([prompt.rows[:3], placeholders, prompt.rows[3:]])
    return replace(prompt, rows=rows, audios=(InputAudio(3, num_rows, features),))


def check(reference: ReferenceModel, engine: Engine, prompts: dict[str, Prompt]) -> int:
    """Check that all replies equal the reference; return the number of preemptions."""
    answers = engine.run(prompts)
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == rows, name
    return sum(answer.trailer.num_preemptions for answer in answers.values())


def test_replies_to_audio_are_exact_when_chunked_and_preempted(reference: ReferenceModel, tight: Engine) -> None:
    tasks = ("listen", "chat", "speak")
    scales = {"listen": 1.0, "chat": 2.0, "speak": 2.0}
    kinds = [(i, (100, 37, 230)[i % 3], tasks[i % 3]) for i in range(6)]
    prompts = {f"r{each[0]}": hearing(*each, guidance_scale=scales[each[2]]) for each in kinds}
    prompts["deaf"] = make_prompt(EIGHT_STREAMS, 7, "listen")
    assert check(reference, tight, prompts) > 0


def test_different_audio_in_equal_rows_shares_no_kv_blocks(reference: ReferenceModel, tight: Engine) -> None:
    first = hearing(1, 230, "listen")
    (audio,) = first.audios
    second = replace(first, audios=(replace(audio, features=audio.features[::-1].copy()),))
    for prompt in (first, second, first):
        check(reference, tight, {"one": prompt})
    assert reference.reply(first) != reference.reply(second)
