"""For any schedule, every reply equals the reference, token by token, on every stream."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from triton.runtime import interpreter
from vllm.triton_utils import dispatcher

from stretto import cpu_backend as cpu_kernels
from stretto.engine.kernels.gpu.draw import draw_on_device
from stretto.engine.kernels.gpu.products import embed_on_device
from stretto.engine.models import multi_stream
from stretto.engine.worker import sampler
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.records.sampling import SegmentSampling
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import make_prompt, make_prompts
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import DEFAULTS, Answer, Engine
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import EIGHT_STREAMS, LEARNED_PADS, THREE_ROWS
from tests.tiers import by_night

pytestmark = pytest.mark.engine

FAMILIES = {"tiny": TINY, "eight_streams": EIGHT_STREAMS}
ROOMY: dict[str, object] = {}
# A budget below most prompts, four slots, and blocks for little more than one pair.
TIGHT = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 160, "num_gpu_blocks_override": 9}


class Checkpoint:
    """A random checkpoint with the reference's cached replies."""

    def __init__(self, folder: Path, name: str):
        self.family: Family = {**FAMILIES, "learned_pads": LEARNED_PADS, "three_rows": THREE_ROWS}[name]
        shape = {} if self.family is TINY else {"hidden": 64, "layers": 2}
        self.folder = write_checkpoint(folder, self.family, name, **shape)
        self._references: dict[int, ReferenceModel] = {}
        self._replies: dict[tuple[object, ...], list[list[int]]] = {}

    def reference(self, max_model_len: int) -> ReferenceModel:
        if max_model_len not in self._references:
            self._references[max_model_len] = ReferenceModel(self.folder, self.family, max_model_len)
        return self._references[max_model_len]

    def reply(
        self,
        prompt: Prompt,
        max_model_len: int = int(str(DEFAULTS["max_model_len"])),
        changes: Sequence[tuple[int, bool]] = (),
        guess: Sequence[list[int]] = (),
    ) -> list[list[int]]:
        """Return the output streams of every row in the reference's reply; see `ReferenceModel.reply`."""
        key = (prompt.task, prompt.sampling, prompt.rows.tobytes(), max_model_len, *changes)
        if key not in self._replies:
            rows, lead = self.reference(max_model_len).reply(prompt, changes, guess)
            assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
            self._replies[key] = [row[: self.family.layout.num_output_streams] for row in rows]
        return self._replies[key]

    def check(self, prompts: dict[str, Prompt], answers: dict[str, Answer], max_model_len: int = 512) -> None:
        for request_id, prompt in prompts.items():
            rows = answers[request_id].rows
            assert rows == self.reply(prompt, max_model_len, guess=rows), request_id
            guided = answers[request_id].trailer.num_guided_frames
            frames = num_frames(self.family, rows)
            assert guided == (frames if prompt.sampling.guidance_scale != 1.0 else 0), request_id


def num_frames(family: Family, rows: list[list[int]]) -> int:
    return sum(row[0] in family.layout.audio[0] for row in rows) // family.rows_per_frame


@pytest.fixture(scope="module", params=["tiny", *by_night("eight_streams")])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


def is_async(checkpoint: Checkpoint) -> bool:
    """Each family uses one kind of scheduling here; test_histories.py and test_same_seed.py use both."""
    return checkpoint.family is TINY


@contextmanager
def engine(checkpoint: Checkpoint, **engine_args: object) -> Iterator[Engine]:
    with Engine(checkpoint.folder, **engine_args) as running:
        yield running
        assert running.is_clean()


@pytest.fixture(scope="module")
def roomy(checkpoint: Checkpoint) -> Iterator[Engine]:
    with engine(checkpoint, async_scheduling=is_async(checkpoint)) as running:
        yield running


@pytest.fixture(scope="module")
def tight(checkpoint: Checkpoint) -> Iterator[Engine]:
    with engine(checkpoint, async_scheduling=is_async(checkpoint), **TIGHT) as running:
        yield running


def test_single_replies_match_the_reference(checkpoint: Checkpoint, roomy: Engine) -> None:
    for request_id, prompt in make_prompts(checkpoint.family, 12).items():
        checkpoint.check({request_id: prompt}, roomy.run({request_id: prompt}))


def test_batched_replies_match_the_reference(checkpoint: Checkpoint, roomy: Engine) -> None:
    prompts = make_prompts(checkpoint.family, 12)
    checkpoint.check(prompts, roomy.run(prompts))


def test_staggered_replies_match_the_reference(checkpoint: Checkpoint, roomy: Engine) -> None:
    prompts = make_prompts(checkpoint.family, 12)
    arrivals = {request_id: 4 * index for index, request_id in enumerate(prompts)}
    checkpoint.check(prompts, roomy.run(prompts, arrivals))


def test_requests_on_four_slots_are_chunked_and_preempted(checkpoint: Checkpoint, tight: Engine) -> None:
    family, prompts = checkpoint.family, make_prompts(checkpoint.family, 12)
    speaking = next(task.name for task in family.tasks if task.has_audio_segment)
    prompts |= {f"pair{index}": make_prompt(family, index, speaking, guidance_scale=2.0) for index in range(4)}
    answers = tight.run(prompts, after_step=check_slots)
    checkpoint.check(prompts, answers, max_model_len=160)
    assert sum(answer.trailer.num_preemptions for answer in answers.values()) > 0
    guided = [i for i, prompt in prompts.items() if prompt.sampling.guidance_scale != 1.0]
    assert any(answers[i].trailer.num_preemptions for i in guided), "no pair was preempted"


def test_reference_reply_is_the_same_with_any_guess(checkpoint: Checkpoint) -> None:
    """With the right one it is computed in two forward passes: the conditional and the unconditional one."""
    reference = checkpoint.reference(512)
    passes: list[int] = []
    for index in (0, 2):
        prompt = make_prompt(checkpoint.family, index)
        rows = reference.reply(prompt)[0]
        right = [row[: checkpoint.family.layout.num_output_streams] for row in rows]
        middle = len(right) // 2
        wrong = [*right[:middle], right[middle - 1], *right[middle + 1 :]]
        hook = reference.model.model.register_forward_hook(lambda *_: passes.append(0))
        assert reference.reply(prompt, guess=right)[0] == rows
        hook.remove()
        assert len(passes) == 1 + (prompt.sampling.guidance_scale != 1.0)
        passes.clear()
        for guess in (wrong, right[:middle], [*right, right[-1]]):
            assert reference.reply(prompt, guess=guess)[0] == rows


def repetitive(family: Family, index: int) -> Prompt:
    """Return a prompt whose codes repeat: they are greedy, or sampled from few codes at temperature 0.9."""
    # prompts from 20 on, because the draws of earlier ones are nearly ties
    prompt = make_prompt(family, 20 + index, ras_window=(3, 0, 12, 500)[index % 4], ras_max_repeats=1 + index % 2)
    return Prompt(prompt.task, prompt.rows, replace(prompt.sampling, audio=replace(prompt.sampling.audio, top_k=3)))


def test_repetition_aware_sampling_is_identical_alone_and_batched(checkpoint: Checkpoint, roomy: Engine) -> None:
    prompts = {f"r{index}": repetitive(checkpoint.family, index) for index in range(12)}
    checkpoint.check(prompts, roomy.run(prompts))
    for name in ("r2", "r6", "r11"):
        checkpoint.check({name: prompts[name]}, roomy.run({name: prompts[name]}))
    changed = 0
    for prompt in prompts.values():
        freely = Prompt(prompt.task, prompt.rows, replace(prompt.sampling, ras_window=0))
        is_changed = checkpoint.reply(prompt) != checkpoint.reply(freely)
        assert not is_changed or prompt.sampling.ras_window
        changed += is_changed
    assert changed >= 2, "the rule was hardly ever applied"


def test_repetition_aware_sampling_survives_preemption(checkpoint: Checkpoint, tight: Engine) -> None:
    prompts = {f"r{index}": repetitive(checkpoint.family, index) for index in range(12)}
    answers = tight.run(prompts)
    checkpoint.check(prompts, answers, max_model_len=160)
    assert sum(answer.trailer.num_preemptions for answer in answers.values()) > 0


def varied(family: Family, index: int) -> Prompt:
    """Return a prompt with different sampling parameters in each segment."""
    prompt = make_prompt(family, index)
    random = np.random.default_rng(100 + index)

    def segment(given: SegmentSampling) -> SegmentSampling:
        temperature, top_p = random.choice([0.0, 0.3, 0.8, 1.5]), random.choice([1.0, 0.95, 0.6, 0.2])
        shortest = int(random.integers(0, 12))
        return replace(
            given,
            temperature=float(temperature),
            top_k=int(random.choice([0, 1, 2, 7, 30, 1000])),
            top_p=float(top_p),
            min_rows=shortest,
            max_rows=shortest + int(random.integers(1, 15)),
        )

    sampling = replace(prompt.sampling, text=segment(prompt.sampling.text), audio=segment(prompt.sampling.audio))
    return Prompt(prompt.task, prompt.rows, sampling)


def test_sampling_parameters_are_per_request_segment_and_stream(checkpoint: Checkpoint, roomy: Engine) -> None:
    prompts = {f"r{index}": varied(checkpoint.family, index) for index in range(16)}
    answers = roomy.run(prompts)
    checkpoint.check(prompts, answers)
    for name in ("r0", "r5", "r10"):
        assert roomy.run({name: prompts[name]})[name].rows == answers[name].rows


def test_older_cfg_pair_preempts_a_younger_request(checkpoint: Checkpoint, tight: Engine) -> None:
    task = checkpoint.family.tasks[0].name
    prompts = {
        "old": make_prompt(checkpoint.family, 2, task, guidance_scale=2.0),
        "young": make_prompt(checkpoint.family, 3, task, guidance_scale=1.0),
        "youngest": make_prompt(checkpoint.family, 7, task, guidance_scale=1.0),
    }
    first, ended = tight.num_steps, dict[str, int]()

    def note(running: Engine) -> None:
        for name in prompts:
            if name not in running.scheduler.requests:
                ended.setdefault(name, running.num_steps - first)

    answers = tight.run(prompts, after_step=note)
    checkpoint.check(prompts, answers, max_model_len=160)
    assert answers["old"].trailer.num_preemptions == 0
    assert answers["youngest"].trailer.num_preemptions > 0
    assert ended["old"] <= len(answers["old"].rows) + 8, "it waited for the others to end"


def check_slots(running: Engine) -> None:
    assert len(running.scheduler.running) <= running.scheduler.max_num_running_reqs


def test_aborted_requests_leave_the_engine_clean(checkpoint: Checkpoint, tight: Engine) -> None:
    prompts = make_prompts(checkpoint.family, 12)
    aborts = {f"r{index}": 3 + 5 * index for index in range(0, 12, 2)}
    answers = tight.run(prompts, aborts=aborts)
    survivors = {i: prompt for i, prompt in prompts.items() if i not in aborts or answers[i].trailer}
    assert 6 <= len(survivors) < 12
    checkpoint.check(survivors, answers, max_model_len=160)
    assert tight.is_clean()


def test_abort_removes_both_requests_of_a_cfg_pair(checkpoint: Checkpoint, tight: Engine) -> None:
    """Every second reply is aborted in the step in which its unconditional request arrives."""
    family = checkpoint.family
    speaking = [task.name for task in family.tasks if Segment.AUDIO in task.segments]
    prompts = {
        f"r{index}": make_prompt(family, index, speaking[index % len(speaking)], guidance_scale=2.0)
        for index in range(6)
    }
    aborted: list[str] = []

    def abort(engine: Engine) -> None:
        for request_id in ("r0", "r2", "r4"):
            if request_id not in aborted and engine.scheduler.table.partner(request_id) is not None:
                aborted.append(request_id)
                engine.core.abort_requests([request_id])

    answers = tight.run(prompts, after_step=abort)
    assert len(aborted) == 3
    checkpoint.check({i: prompt for i, prompt in prompts.items() if i not in aborted}, answers, max_model_len=160)
    assert tight.is_clean()


def test_prompts_that_differ_only_in_codes_share_no_kv_blocks(checkpoint: Checkpoint, roomy: Engine) -> None:
    task = checkpoint.family.tasks[-1].name
    first = make_prompt(checkpoint.family, 7, task)
    assert len(first.rows) == 70
    second = Prompt(task, first.rows.copy(), first.sampling)
    ids = checkpoint.family.layout.audio[1]
    second.rows[10, 1] = ids.start + (first.rows[10, 1] - ids.start + 1) % len(ids)
    for prompt in (first, second, first):
        checkpoint.check({"one": prompt}, roomy.run({"one": prompt}))
    assert checkpoint.reply(first) != checkpoint.reply(second)


def test_unconditional_requests_share_their_cached_context(checkpoint: Checkpoint, roomy: Engine) -> None:
    """The second of two guided replies with different prompts finds its unconditional context in the cache."""
    task = checkpoint.family.tasks[0].name
    computed: list[int] = []

    def see(running: Engine) -> None:
        for request in running.scheduler.running:
            if "#" in request.request_id and request.num_computed_tokens:
                computed.append(request.prefill_stats is None or request.prefill_stats.num_local_cached_tokens)

    for index in (3, 15):
        prompt = make_prompt(checkpoint.family, index, task, guidance_scale=2.0)
        prompt.rows[:2] = make_prompt(checkpoint.family, 3, task).rows[:2]
        roomy.run({"one": prompt}, after_step=see)
    assert max(computed) >= 64


def test_interpreted_kernels_are_exact(checkpoint: Checkpoint, roomy: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's code path runs, with vLLM's and our Triton kernels in the interpreter."""
    monkeypatch.setattr(
        sampler, "draw", lambda logits, ids, keys, params, plan: draw_on_device(logits, ids, keys, params)
    )
    monkeypatch.setattr(multi_stream, "embed_rows", embed_on_device)
    for name in cpu_kernels.KERNELS:
        module, attribute = name.rsplit(".", 1)
        if attribute.endswith("_kernel"):
            monkeypatch.setattr(import_module(module), attribute, dispatcher._registry[name][0])
    launched: set[str] = set()
    launch = interpreter.GridExecutor.__call__

    def record(self: interpreter.GridExecutor, *args: object, **kwargs: object) -> object:
        launched.add(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", record)
    prompts = {name: make_prompt(checkpoint.family, index) for name, index in (("guided", 0), ("unguided", 1))}
    checkpoint.check(prompts, roomy.run(prompts))
    assert {"_prepare_pos_seq_lens_kernel", "_post_update_kernel", "_gather_block_tables_kernel"} <= launched
    assert {"_draw_kernel", "_embed_kernel"} <= launched


def test_replies_do_not_depend_on_prefix_caching(checkpoint: Checkpoint) -> None:
    """The last of a family's tests: this engine takes the process's parallel groups with it when it ends."""
    prompts = make_prompts(checkpoint.family, 8)
    with engine(checkpoint, enable_prefix_caching=False) as running:
        checkpoint.check(prompts, running.run(prompts))


def test_learned_pads_are_embedded_in_every_row(tmp_path: Path) -> None:
    learned = Checkpoint(tmp_path, "learned_pads")
    prompts = {f"r{index}": make_prompt(learned.family, index) for index in (0, 1, 2)}
    with engine(learned, async_scheduling=False) as running:
        learned.check(prompts, running.run(prompts))


def test_frame_rows_are_sampled_from_their_own_ids(tmp_path: Path) -> None:
    """Replies are unbatched, batched, and preempted within frames. A limit may cut a reply within a frame.

    Otherwise a reply ends after a frame.
    """
    three_rows = Checkpoint(tmp_path, "three_rows")
    prompts = {f"r{index}": make_prompt(THREE_ROWS, index, repetition_penalty=1.2) for index in range(12)}
    places = THREE_ROWS.layout.frame_codec.places
    with engine(three_rows, **TIGHT) as running:
        answers = running.run(prompts)
        three_rows.check(prompts, answers, max_model_len=160)
        three_rows.check({"r1": prompts["r1"]}, running.run({"r1": prompts["r1"]}), max_model_len=160)
        timed = {"policy": "until_s", "guided_until_s": 0.3, "guidance_scale": 2.0}  # 4 frames of 0.08 s
        for index in range(3):
            prompt = make_prompt(THREE_ROWS, index, **timed)
            answer = running.run({"timed": prompt})["timed"]
            assert answer.rows == three_rows.reply(prompt, 160)
            assert answer.trailer.num_guided_frames == min(4, num_frames(THREE_ROWS, answer.rows))
    assert sum(answer.trailer.num_preemptions for answer in answers.values()) > 0
    for answer in answers.values():
        assert all(row[0] in places[index % 3] for index, row in enumerate(answer.rows[:-1]))
    lengths = {answer.trailer.was_cut: set[int]() for answer in answers.values()}
    for answer in answers.values():
        lengths[answer.trailer.was_cut].add((len(answer.rows) - 1) % 3)
    assert lengths[0] == {0}, "an end was drawn within a frame"
    assert lengths[1] > {0}, "no reply was cut within a frame"
