"""Speech about images, Qwen3-Omni: states, positions, words and codes equal those of transformers' whole model."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import pytest_asyncio

from plugins.qwen3_omni.lab.random_qwen3_omni import small_config, thinker_config
from plugins.qwen3_omni.tests.engine.test_prompt_states import run
from plugins.qwen3_omni.tests.engine.test_spoken_llm import Maker, answer, assert_idle
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import Processor, convert, sights
from plugins.qwen3_omni.tests.published_qwen3_omni_whole import Whole
from stretto.config import EngineConfig
from stretto.engine.llm import launch
from stretto.errors import InvalidRequest
from stretto.family.image_encoder import positions_of
from stretto.records.prompt import Prompt
from stretto.testing.conformance import num_preemptions
from stretto_qwen3_omni.qwen3_omni.mechanism.spoken_llm import SpokenLLM
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS, Engine
from tests.patience import until_async
from tests.tiers import by_night

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
NUM_WORDS, NUM_FRAMES = 20, 28
VOICES = "ethan", "chelsie"
# Of 5 replies, 4 in a batch, with prompts in chunks, and room for hardly one of the longest.
TIGHT: dict[str, Any] = {
    "max_model_len": 288,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 10,
}


def wider_config() -> dict[str, Any]:
    """Return config.json of a release of other sizes, whose talker has other sections of positions."""
    config = small_config() | {"thinker_config": thinker_config(128, layers=5, experts=8, active=3)}
    config["talker_config"] |= {"thinker_hidden_size": 128, "accept_hidden_layer": 4}
    config["talker_config"]["text_config"]["rope_scaling"]["mrope_section"] = [6, 5, 5]
    return config


@dataclass(frozen=True)
class Expected:
    """Reply of transformers' whole model to a conversation."""

    voice: int
    words: list[int]
    codes: np.ndarray
    states: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what transformers' class with the tensors of its release expects, by conversation."""

    maker: Maker
    expected: Mapping[str, Expected]

    def requests(self) -> dict[str, Prompt]:
        """Return requests for spoken replies, by conversation."""
        return {name: self.maker.prompt(name, known.voice) for name, known in self.expected.items()}

    def speaking(self, name: str, grids: list[tuple[int, int]] | None = None) -> Prompt:
        """Return the talker's part of a request; `grids` are the sizes of the images, by default theirs."""
        request, known = self.maker.prompt(name), self.expected[name]
        sizes = [(image.height, image.width) for image in request.images] if grids is None else grids
        prompts = TalkerPrompts.at(self.maker.checkpoint / "talker")
        sampling = replace(prompts.family.tasks[0].sampling, audio=request.sampling.audio, depth=request.sampling.depth)
        given = request.rows[:, 0], known.words, VOICES[known.voice], known.states, replace(sampling, seed=0)
        return prompts.write(*given, grids=sizes)


@pytest.fixture(scope="module", params=["whole", *by_night("wider")])
def case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Case:
    config, seed = (small_config(), 1) if request.param == "whole" else (wider_config(), 2)
    checkpoint = convert(tmp_path_factory.mktemp("spoken"), config, seed)
    whole, processor, expected = Whole(checkpoint.parent / "release"), Processor(checkpoint), dict[str, Expected]()
    for index, (name, pieces) in enumerate(sights().items()):
        voice = (index + 1) % 2
        words, codes = whole.reply(processor.inputs(pieces), VOICES[voice], NUM_WORDS, NUM_FRAMES)
        assert codes.shape[1] > len(words), f"{name}: speech ends before its text, which ours may not: change its voice"
        expected[name] = Expected(voice, words, codes, whole.states, whole.positions)
    return Case(Maker(checkpoint), expected)


@pytest.fixture(scope="module")
def talker(case: Case) -> Iterator[Engine]:
    with Engine(case.maker.checkpoint / "talker", **TIGHT) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm(case: Case) -> AsyncIterator[SpokenLLM]:
    with forked_processes():
        running = launch(EngineConfig(case.maker.checkpoint, {**DEFAULTS, **TIGHT}, speaker=DEFAULTS | TIGHT))
    assert isinstance(running, SpokenLLM)
    yield running
    running.shutdown()


async def test_states_of_the_thinker_match_transformers(case: Case) -> None:
    """States of rows of audio and images are computed in batches, in chunks, after preemptions, and cached."""
    requests, total = case.requests(), 0
    with Engine(case.maker.checkpoint, **TIGHT) as engine:
        for _ in range(2):
            found, preempted = run(engine, requests)
            total += preempted
            for name, known in case.expected.items():
                (states,) = found[name]
                np.testing.assert_allclose(states, known.states, rtol=0, atol=1e-4, err_msg=name)
        assert engine.is_clean()
    assert total > 0


async def test_positions_of_the_talker_match_transformers(case: Case) -> None:
    for name, known in case.expected.items():
        prompt = case.speaking(name)
        assert np.array_equal(positions_of(prompt.images, 0, len(prompt.rows)), known.positions), name


def codes_of(engine: Engine, rows: list[list[int]]) -> np.ndarray:
    """Return the codes [K, T] in the rows of a reply, the last of which ends it."""
    return (np.array(rows[:-1]) - [ids.start for ids in engine.rules.family.layout.audio]).T


async def test_codes_of_the_talker_match_transformers(case: Case, talker: Engine) -> None:
    """Replies are batched, chunked, preempted, cached, and unbatched."""
    prompts, total = {name: case.speaking(name) for name in case.expected}, 0
    for _ in range(2):
        replies = talker.run(prompts, dict.fromkeys(prompts, 0))
        total += num_preemptions(replies)
        for name, reply in replies.items():
            assert np.array_equal(codes_of(talker, reply.rows), case.expected[name].codes), name
    assert total > 0
    for name, prompt in prompts.items():
        talker.core.reset_prefix_cache()
        assert talker.run({"one": prompt})["one"].rows == replies[name].rows, name
    assert talker.is_clean()


async def test_codes_depend_on_the_shape_of_the_image(case: Case, talker: Engine) -> None:
    """Prompts with equal ids and states, but other positions, share no cached rows."""
    prompts = {"as it is": case.speaking("image"), "turned": case.speaking("image", _turned(case))}
    assert np.array_equal(*(prompt.rows for prompt in prompts.values()))
    alone = {}
    for name, prompt in prompts.items():
        talker.core.reset_prefix_cache()
        alone[name] = talker.run({"one": prompt})["one"].rows
    for name, prompt in prompts.items():
        assert talker.run({"one": prompt})["one"].rows == alone[name]
    assert alone["as it is"] != alone["turned"]


def _turned(case: Case) -> list[tuple[int, int]]:
    (image,) = case.maker.prompt("image").images
    return [(image.width, image.height)]


async def test_replies_match_transformers(case: Case, llm: SpokenLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words and codes of both models; alone, all at once, and once more from the prefix cache."""
    requests = case.requests()
    alone = {}
    for name, request in requests.items():
        reply = alone[name] = await answer(llm, request, monkeypatch)
        assert reply.words == case.expected[name].words, name
        assert np.array_equal(reply.codes, case.expected[name].codes), name
    assert len({reply.codes.tobytes() for reply in alone.values()}) == len(alone)
    replies = await asyncio.gather(*(answer(llm, request) for request in requests.values()))
    for name, reply in zip(requests, replies, strict=True):
        assert (reply.text, reply.codes.tolist()) == (alone[name].text, alone[name].codes.tolist()), name
    await assert_idle(llm)


async def test_states_are_dropped_when_they_have_been_sent(
    case: Case, llm: SpokenLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing keeps them while the talker speaks."""
    write, given = llm.prompts.write, list[Any]()

    def noted(*arguments: Any, **options: Any) -> Prompt:
        given.append(ref(arguments[3]))
        return write(*arguments, **options)

    monkeypatch.setattr(llm.prompts, "write", noted)
    async with aclosing(llm.generate(case.maker.prompt("image"))) as chunks:
        async for each in chunks:
            if each.codes is not None:
                break
        # of the check, and of the reply
        await until_async(lambda: [states() is None for states in given] == [True, True])
    await assert_idle(llm)


async def test_images_that_cannot_be_spoken_about_are_refused_before_the_writer_begins(
    case: Case, llm: SpokenLLM
) -> None:
    request = case.maker.prompt("image")
    (image,) = request.images
    before = [part.stats()["engine_steps_total"] for part in llm.parts]
    for message, changed in {
        r"float32 \[176, 96\] for 4 x 11 rows, got float32 \[220, 96\]": replace(image, height=4),
        r"a first row in \[0, 10\], got 11": replace(image, first_row=11),
        "finite features, got NaN": replace(image, features=np.full_like(image.features, np.nan)),
    }.items():
        with pytest.raises(InvalidRequest, match=rf"^images\[0\]: expected {message}"):
            await answer(llm, replace(request, images=(changed,)))
    assert [part.stats()["engine_steps_total"] for part in llm.parts] == before
