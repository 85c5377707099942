"""Hidden states of audio input leave the engine once their prompt is computed, and equal transformers'."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.qwen3_omni.tests.small_families import SPOKEN
from stretto.errors import CheckpointError
from stretto.family.log_mel import MelFormat
from stretto.family.mechanism import Mechanism
from stretto.records.prompt import InputAudio, Prompt
from stretto.testing.checkpoints import make_prompt
from stretto.testing.conformance import num_preemptions
from stretto.testing.reference import ReferenceModel
from stretto_qwen3_omni.qwen3_omni.family import Talker
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine
LENGTH, NUM_MELS = 160, 8
AUDIO_CONFIG = {
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "d_model": 8,
    "output_dim": 8,
    "num_mel_bins": NUM_MELS,
    "downsample_hidden_size": 4,
    "n_window": 50,
    "n_window_infer": 400,
}
# Prompts in chunks, 4 of 8 replies at once, and room for hardly two of the longest.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 7}


def spoken_prompt(index: int, task: str = "answer", salt: int = 0) -> Prompt:
    """Return a prompt with one or two recordings, the first of which begins after a block of text or in the middle."""
    made, random = make_prompt(SPOKEN, index, task), np.random.default_rng(index)
    rows = np.concatenate([np.full_like(made.rows[:1].repeat(33, 0), 20), made.rows])  # a block that all share
    audios, at = [], (36, 33, 34)[index % 3]
    random = np.random.default_rng(100 * index + salt)
    for num_frames in (70, 25)[: 1 + index % 2]:
        num_rows = MelFormat(NUM_MELS).num_rows(num_frames)
        features = random.standard_normal((num_frames, NUM_MELS), dtype=np.float32)
        rows = np.concatenate([rows[:at], np.full((num_rows, rows.shape[1]), 21, np.int32), rows[at:]])
        audios.append(InputAudio(at, num_rows, features))
        at += num_rows + 1
    return replace(made, rows=np.ascontiguousarray(rows, np.int32), audios=tuple(audios))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("spoken"), SPOKEN, "spoken", audio_config=AUDIO_CONFIG)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Callable[[Prompt], np.ndarray]:
    """Function that computes the states of a prompt with transformers."""
    reference = ReferenceModel(checkpoint, SPOKEN, LENGTH)

    @torch.no_grad()
    def states(prompt: Prompt) -> np.ndarray:
        heard = reference.encode_audio(prompt)
        embedded = reference.context().embed(prompt.rows.tolist())
        for position, row in heard.items():
            embedded[position] = row
        every = reference.model.model(inputs_embeds=embedded[None], output_hidden_states=True).hidden_states
        return every[2][0, sorted(heard)].numpy()

    return states


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def tight(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(checkpoint, async_scheduling=request.param, max_model_len=LENGTH, **TIGHT) as engine:
        yield engine


def run(engine: Engine, prompts: dict[str, Prompt], **more: Any) -> tuple[dict[str, list[np.ndarray]], int]:
    """Generate replies; return the states that were sent for each, and the number of preemptions."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in prompts}
    has_rows, step = set[str](), engine.step

    def watched() -> Any:
        outputs = step()
        for each in outputs.values():
            for output in each.outputs:
                if output.pooling_output is not None:
                    assert output.request_id not in has_rows or found[output.request_id], "rows came before the states"
                    found[output.request_id].append(output.pooling_output.numpy())
                if output.new_token_ids:
                    has_rows.add(output.request_id)
        return outputs

    engine.step = watched  # type: ignore[method-assign]
    try:
        answers = engine.run(prompts, **more)
    finally:
        del engine.step
    return found, num_preemptions(answers)


def test_states_match_transformers(tight: Engine, expected: Callable[[Prompt], np.ndarray]) -> None:
    """Prompts are chunked, some are preempted, and all share blocks with earlier ones."""
    prompts = {f"r{index}": spoken_prompt(index) for index in range(8)}
    total = 0
    for _ in range(2):  # the second time, the prefix cache has all rows
        found, preempted = run(tight, prompts)
        total += preempted
        for name, prompt in prompts.items():
            (states,) = found[name]
            np.testing.assert_allclose(states, expected(prompt), rtol=0, atol=1e-4, err_msg=name)
    assert total > 0
    assert tight.is_clean()
    assert not tight.model_state.prompt_states._inputs


def test_replies_that_are_not_spoken_send_no_states(tight: Engine) -> None:
    prompts = {"spoken, without audio": replace(make_prompt(SPOKEN, 1, "answer"))}
    prompts["text"] = spoken_prompt(3, "listen")
    found, _ = run(tight, prompts)
    assert found == {"spoken, without audio": [], "text": []}


def test_rows_before_the_first_audio_come_from_the_prefix_cache(checkpoint: Path) -> None:
    """The same text precedes different recordings: its block is computed once, and the audio is always computed."""
    with Engine(checkpoint, max_model_len=LENGTH) as engine:
        counts = []
        engine.after_schedule = lambda output: counts.append(output.total_num_scheduled_tokens)
        for salt, name in ((0, "answer"), (1, "answer"), (1, "answer"), (1, "listen")):
            first = len(counts)
            run(engine, {"one": spoken_prompt(0, name, salt)})
            num_rows = len(spoken_prompt(0).rows)
            assert counts[first] == num_rows - (0 if first == 0 else 32 if name == "answer" else num_rows // 32 * 32)


def test_aborted_requests_leave_no_states(tight: Engine) -> None:
    prompts = {f"r{index}": spoken_prompt(index, salt=5) for index in range(4)}
    run(tight, prompts, aborts=dict.fromkeys(prompts, 1))
    assert tight.is_clean()
    assert not tight.model_state.prompt_states._inputs


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_that_do_not_exist_are_refused(checkpoint: Path, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.engine.models import multi_stream

    odd = replace(SPOKEN, mechanism=Mechanism(speaker=Talker(layer)))
    monkeypatch.setattr(multi_stream, "family_of", lambda _: odd)
    number = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
    with pytest.raises(CheckpointError, match=rf"expected a layer in \[0, {number}\), got {layer}"):
        Engine(checkpoint)
