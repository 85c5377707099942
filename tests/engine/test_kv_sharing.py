"""KV shares: replies with text output and replies with audio output do not block each other."""

from dataclasses import replace

import pytest

from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Engine
from tests.engine.test_parity import Checkpoint, engine
from tests.tiers import SYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine

# Blocks for four long prompts; replies take far more steps than prompts.
LIMITS = {"max_num_seqs": 12, "max_model_len": 192, "num_gpu_blocks_override": 17, "max_num_batched_tokens": 256}
SHARES = {"understanding": 0.5, "generation": 0.5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), "eight_streams")


def listening(checkpoint: Checkpoint, index: int) -> Prompt:
    """Return a prompt of 70 rows (three blocks) with a reply of 40 rows."""
    prompt = make_prompt(checkpoint.family, 3 + 4 * index, "listen")
    text = replace(prompt.sampling.text, min_rows=40, max_rows=40)
    return replace(prompt, sampling=replace(prompt.sampling, text=text))


def speaking(checkpoint: Checkpoint, index: int) -> Prompt:
    """Return a prompt of 40 rows (two blocks for each request of the CFG pair) with a reply of 40 frames."""
    prompt = make_prompt(checkpoint.family, 2 + 4 * index, "speak", guidance_scale=2.0)
    audio = replace(prompt.sampling.audio, min_rows=40, max_rows=40)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio))


def first_rows(running: Engine, crowd: dict[str, Prompt], single: Prompt) -> tuple[int, dict[str, int]]:
    """Return the steps at which a single request, last in the queue, and the others have their first row."""
    begun, first = running.num_steps, dict[str, int]()

    def look(engine: Engine) -> None:
        for request_id, request in engine.scheduler.requests.items():
            if request.num_output_tokens and "#" not in request_id:
                first.setdefault(request_id, engine.num_steps - begun)

    prompts = {**crowd, "single": single}
    arrivals = dict.fromkeys(crowd, 0) | {"single": 1}
    answers = running.run(prompts, arrivals, after_step=look)
    assert all(answer.trailer for answer in answers.values())
    return first.pop("single"), first


@pytest.mark.parametrize("kind", ["listening", *by_night("speaking")])
def test_kv_shares_prevent_starvation_between_request_classes(checkpoint: Checkpoint, kind: str) -> None:
    makers = {"listening": listening, "speaking": speaking}
    crowd = {f"r{index}": makers[kind](checkpoint, index) for index in range(10)}
    single = makers["speaking" if kind == "listening" else "listening"](checkpoint, 20)
    with engine(checkpoint, **LIMITS) as running:
        starved, _ = first_rows(running, crowd, single)
    with engine(checkpoint, kv_share=SHARES, **LIMITS) as running:
        served, first = first_rows(running, crowd, single)
    assert starved > 50, "the crowd left room: nothing is shown"
    assert served <= 6
    assert list(first) == list(crowd), "within a class the order stays"


@pytest.mark.parametrize("is_async", SYNC_BY_DAY)
def test_replies_with_kv_shares_match_the_reference(checkpoint: Checkpoint, is_async: bool) -> None:
    prompts = {f"r{index}": make_prompt(checkpoint.family, index) for index in range(12)}
    arrivals = {request_id: 3 * index for index, request_id in enumerate(prompts)}
    limits = LIMITS | {"max_model_len": 160, "num_gpu_blocks_override": 11, "async_scheduling": is_async}
    with engine(checkpoint, kv_share={"understanding": 0.3, "generation": 0.4}, **limits) as running:
        checkpoint.check(prompts, running.run(prompts, arrivals), max_model_len=160)


def test_first_request_of_a_class_is_admitted_beyond_its_share(checkpoint: Checkpoint) -> None:
    with engine(checkpoint, kv_share={"generation": 0.01, "understanding": 0.01}, **LIMITS) as running:
        prompts = {"one": speaking(checkpoint, 0), "two": speaking(checkpoint, 1), "three": listening(checkpoint, 2)}
        checkpoint.check(prompts, running.run(prompts), max_model_len=192)
