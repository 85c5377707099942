"""A family with a mechanism that no built-in family has (`examples/custom_mechanism`), outside of the package."""

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from vllm.v1.core.sched.output import SchedulerOutput

from stretto.engine.reply_rules import TextUpdate
from stretto.family.plugin import FamilyPlugin
from stretto.testing import assert_family_conforms
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from tests.engine.harness import Answer, Engine, update_request
from tests.engine.test_no_sync import as_on_a_gpu

pytestmark = pytest.mark.engine
PACKAGE = Path(__file__).parents[2] / "examples" / "custom_mechanism"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FamilyPlugin]:
    """Register the package by its metadata, as an editable installation does, and return its plug-in."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    info = folder / "stretto_thirds-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["stretto.families"]
    lines = ["[stretto.families]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.syspath_prepend(PACKAGE)
        yield import_module("stretto_thirds").PLUGIN


def test_family_with_its_own_mechanism_conforms(plugin: FamilyPlugin, tmp_path: Path) -> None:
    """Sampled and greedy replies, guided or not, equal the slow reference unbatched, batched and preempted."""
    assert_family_conforms(plugin, tmp_path, hidden=64, layers=2)


def test_family_with_steps_of_two_rows_conforms(plugin: FamilyPlugin, tmp_path: Path) -> None:
    """A mechanism outside of the package may generate several rows a step; here without modules, by a rule."""
    fast: FamilyPlugin = import_module("stretto_thirds").FAST
    assert fast.build(None).mechanism.steps.max_extra == 1
    assert_family_conforms(fast, tmp_path, hidden=64, layers=2)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["numpy", "torch"])
def test_mechanism_gives_the_same_reply_from_the_cache_and_for_streamed_text(
    plugin: FamilyPlugin, on_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch samples the rows on a GPU, because the mechanism has no kernel."""
    if on_gpu:
        as_on_a_gpu(monkeypatch)
    family, answer, num_cached = plugin.build(None), Answer(), list[int]()
    write_checkpoint(tmp_path, family, plugin.name, hidden=64, layers=2)
    given = replace(make_prompt(family, 2, guidance_scale=1.0), track=(*range(20, 32), 7))
    audio = replace(given.sampling.audio, min_rows=len(given.track), max_rows=40)
    given = replace(given, sampling=replace(given.sampling, audio=audio))

    def note(step: SchedulerOutput) -> None:
        num_cached.extend(each.num_computed_tokens for each in step.scheduled_new_reqs)

    with Engine(tmp_path) as engine:
        assert engine.model_state.slots.is_exact is not on_gpu
        whole = engine.run({"whole": given})["whole"].rows
        engine.after_schedule = note
        assert engine.run({"again": given})["again"].rows == whole
        engine.add("open", replace(given, track=given.track[:3], is_open=True))
        for part in (given.track[3:5], given.track[5:]):
            while engine.is_busy():
                engine._step({"open": answer})
            engine.core.add_request(update_request(TextUpdate("open", np.array(part, np.int32), part[-1] == 7)))
        while engine.is_busy():
            engine._step({"open": answer})
    assert answer.rows == whole
    assert num_cached == [32, 32], "the first block of the prompt is shared"
    codes = [row[0] for row in whole if row[0] in family.layout.audio[0]]
    assert codes[2::3] == codes[1::3][: len(codes[2::3])]
    assert len(codes) > 12
    assert len(set(codes)) > 4
