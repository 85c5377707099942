"""Tests that every model family should pass, as a base class for pytest.

    class TestMyFamily(FamilySuite):
        case = FamilyCase(plugin=PLUGIN, write=write_release, …)

The subclass inherits the tests, except those for parts that the case leaves out. Its own tests can use the fixtures,
too: `release` is a small release with its checkpoint, which all tests of the class share, and `copied` a copy for
edits. Tests that start vLLM have the marker `engine`, and longer variants of others the marker `nightly`.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, FamilyPlugin, config_at
from stretto.family.sections import Section
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.case_suite import by_night, leave_out_absent, parametrize
from stretto.testing.limits import asked, inputs_beyond_limits, talk
from stretto.testing.ranges import assert_refused_outside_ranges
from stretto.testing.releases import Edit, SmallRelease, edited, set_fields, split_weights
from stretto.testing.rounding import is_same
from stretto.weights.loading import Plan, Shape, check

if TYPE_CHECKING:
    from stretto.testing.conformance import Engine

SPREAD_BY_DAY = 3  # number of tensors that are left out, one by one; by night one of each layer's
TIGHT = {"max_num_batched_tokens": 96, "max_num_seqs": 4}


class ExpectedReply(NamedTuple):
    """Prompt, and the expected rows of its reply.

    Attributes:
        rows: Ids of all rows as the authors' code or a slow reference generates them, or a function that asserts that
            generated rows, int64 [T, 1 + N], are near those; then replies in batches equal the reply alone.
    """

    prompt: Prompt
    rows: list[list[int]] | Callable[[np.ndarray], None]


@dataclass(frozen=True)
class PublishedSizes:
    """Names and shapes of the tensors of a published release, and the plan of their conversion.

    Attributes:
        written: Expected shapes of some tensors of the checkpoint.
        num_written: Number of tensors of the checkpoint.
        unused: Names of published tensors that are left out.
    """

    shapes: Mapping[str, Shape]
    plan: Plan
    written: Mapping[str, Shape]
    num_written: int
    unused: Collection[str] = ()


@dataclass(frozen=True)
class FamilyCase:
    """Data of a family that its tests depend on.

    Attributes:
        write: Function that writes a small random release to a folder, given the name of its sizes, and returns the
            arguments of `stretto convert`, without `--out`.
        sizes: Names of small sizes. Most tests use the first.
        other_sizes: Names of sizes that are only converted.
        config, weights, tokenizer: Paths in the folder of the config, the language model's tensors and tokenizer.json.
        may_be_sharded: False if the files of the weights have fixed names.
        tensors_in: Function that returns the tensors by name in the content of `weights`.
        name_if_missing: Function that returns the name of a missing tensor in errors, if releases have several for it.
        unneeded_tensors: Published names of tensors that a release may lack.
        same_configs: Changes of the config, by dotted paths, after which the checkpoint is the same.
        refused_configs: Changes of the config, and a part of the error.
        refused_edits: File in the folder, edit of its content, and a part of the error; for a folder, the edit gets its
            path.
        edits_by_night: Further entries of `refused_edits`, which only scripts/nightly.sh runs.
        needed_tokens: Tokens that the tokenizer must have.
        published: Function that returns the sizes of a published release.
        codec: Codec of the tests of prompts, if the release has none.
        prompts: Function that returns inputs of requests, and the expected rows of their prompts, by name.
        refused_inputs: Inputs of a request, and the beginning of the error.
        has_usual_requests: False if the model cannot speak a text without more, such as a voice.
        markers: Special tokens that are plain characters in a text.
        refused_markers: Tokens that are refused in a text if the release does not mark them as special.
        text_options: Options whose texts are in the prompt, such as `instruct`.
        replies: Function that returns prompts with the expected rows of their replies by name.
        engine: Arguments of the engine that generates them.
        tight: Further arguments with which some replies are preempted.
        conformance: Arguments of `assert_family_conforms` after the folder.
        conforming_size: Name of the sizes of the release whose checkpoint conforms, instead of a random one; then
            `conformance` has neither a vocabulary nor a function that writes checkpoints.
        conforms_by_night: True if only scripts/nightly.sh runs the conformance test, because it takes long.
    """

    plugin: FamilyPlugin
    write: Callable[[Path, str], Sequence[str | Path]]
    sizes: Sequence[str] = ("small",)
    other_sizes: Sequence[str] = ()
    config: str = "release/config.json"
    weights: str = "release/model.safetensors"
    tokenizer: str = "release/tokenizer.json"
    may_be_sharded: bool = True
    tensors_in: Callable[[Any], dict[str, Tensor]] = lambda content: content
    name_if_missing: Callable[[str], str] = str
    unneeded_tensors: Collection[str] = ()
    same_configs: Sequence[Mapping[str, object]] = ()
    refused_configs: Sequence[tuple[Mapping[str, object], str]] = ()
    refused_edits: Sequence[tuple[str, Edit, str]] = ()
    edits_by_night: Sequence[tuple[str, Edit, str]] = ()
    needed_tokens: Sequence[str] = ()
    published: Callable[[], PublishedSizes] | None = None
    codec: Codec | None = None
    prompts: Callable[[SmallRelease], Mapping[str, tuple[Mapping[str, Any], np.ndarray]]] | None = None
    refused_inputs: Sequence[tuple[Mapping[str, Any], str]] = ()
    has_usual_requests: bool = True
    markers: Sequence[str] = ()
    refused_markers: Sequence[str] = ()
    text_options: Sequence[str] = ()
    replies: Callable[[SmallRelease], Mapping[str, ExpectedReply]] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    tight: Mapping[str, Any] = field(default_factory=dict)
    conformance: Mapping[str, Any] | None = None
    conforming_size: str = ""
    conforms_by_night: bool = False


def request_with(text_field: str, words: str) -> RawRequest:
    """Return a request with words in its text, or in an option."""
    option: dict[str, Any] = {text_field: words}
    return RawRequest(**(asked(words) if text_field == "text" else asked("a", **option)))


def one_of_each_layer(names: Iterable[str]) -> list[str]:
    """Return the last of the names that differ in numbers only, such as those of layers."""
    return list({re.sub(r"\d+", "*", name): name for name in names}.values())


def spread(names: Sequence[str], number: int) -> list[str]:
    """Return `number` of the names, evenly spaced, with the first and the last."""
    return [names[round(index)] for index in np.linspace(0, len(names) - 1, min(number, len(names)))]


def on_meta(shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return tensors of these shapes on torch's device `meta`."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def text_ids(prompt: Prompt, family: Family) -> list[int]:
    """Return all ids of a prompt that may be text: of its text streams, and of the text beside the reply."""
    streams = [0, *family.track_streams]
    return [*prompt.rows[:, streams].flatten().tolist(), *prompt.track]


def assert_same_checkpoints(one: SmallRelease, other: SmallRelease) -> None:
    """Assert that two checkpoints have the same config and tensors."""
    assert config_at(one.checkpoint) == config_at(other.checkpoint)
    assert one.weights.keys() == other.weights.keys()
    assert all(is_same(tensor, other.weights[name]) for name, tensor in one.weights.items())


def parts_of(case: FamilyCase) -> dict[str, Sequence[Any]]:
    """Return the values of the tests' arguments, by name; none for parts that the case does not have."""
    return {
        "same_config": case.same_configs,
        "refused_config": [pytest.param(entry, id=entry[-1]) for entry in case.refused_configs],
        "refused_edit": [
            pytest.param(entry, id=f"{entry[0]}: {entry[-1]}", marks=pytest.mark.nightly if is_night else ())
            for is_night, entries in ((False, case.refused_edits), (True, case.edits_by_night))
            for entry in entries
        ],
        "refused_input": [pytest.param(entry, id=entry[-1]) for entry in case.refused_inputs],
        "needed_token": case.needed_tokens,
        "marker": case.markers,
        "refused_marker": case.refused_markers,
        "text_field": ["text", *case.text_options],
        "other_size": case.other_sizes,
        "published": [case.published] if case.published else [],
        "prompts_of_size": case.sizes if case.prompts else [],
        "conformance": _conformances(case),
        "scheduling": list(_schedulings(case)) if case.replies else [],
        "num_tensors": [SPREAD_BY_DAY, *by_night(1 << 10)],
    }


def is_bounded(release: SmallRelease, inputs: Mapping[str, Any], prompt: Prompt) -> bool:
    """Return True if a reply that reads a text aloud is not longer than the request or the text permits."""
    task = release.preprocessor.family.task(prompt.task)
    if not task.reads_aloud or prompt.has_ceiling or prompt.is_open or "max" in str(inputs.get("options")):
        return True
    longest = task.speech_limits.max_frames(str(inputs), release.preprocessor.codec.spec.frame_rate)
    return prompt.sampling.audio.max_rows <= release.preprocessor.family.num_audio_rows(longest)


class FamilySuite:
    """Base class of a family's tests; the module docstring describes it."""

    case: ClassVar[FamilyCase]

    @pytest.fixture(scope="class")
    @classmethod
    def releases(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SmallRelease]:
        """Small releases by the name of their sizes."""
        folder = tmp_path_factory.mktemp(cls.case.plugin.name)
        return {
            size: SmallRelease.written(folder / size, size, cls.case.write, cls.case.codec) for size in cls.case.sizes
        }

    @pytest.fixture
    def release(self, releases: dict[str, SmallRelease]) -> SmallRelease:
        """The release of the first sizes."""
        return releases[self.case.sizes[0]]

    @pytest.fixture(scope="class")
    @classmethod
    def expected_replies(cls, releases: dict[str, SmallRelease]) -> Callable[[str], Mapping[str, ExpectedReply]]:
        """Function that returns the expected replies of the release of a size; they are computed once."""
        assert cls.case.replies is not None
        replies_of = cls.case.replies
        return cache(lambda size: replies_of(releases[size]))

    @pytest.fixture
    def copied(self, release: SmallRelease, tmp_path: Path) -> SmallRelease:
        """A copy of the release, for edits."""
        return release.copied(tmp_path / "published")

    def start_engine(self, checkpoint: Path, **arguments: Any) -> "Engine":
        """Return an engine for a checkpoint; a subclass may prepare the process first."""
        from stretto.testing.conformance import Engine

        return Engine(checkpoint, **arguments)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "case"):
            leave_out_absent(cls, parts_of(cls.case))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        parametrize(metafunc, parts_of(self.case))

    def test_release_of_other_sizes_is_converted(self, tmp_path: Path, other_size: str) -> None:
        release = SmallRelease.written(tmp_path / other_size, other_size, self.case.write)
        assert release.family.name == self.case.plugin.name

    def test_sharded_release_gives_the_same_checkpoint(self, release: SmallRelease, copied: SmallRelease) -> None:
        weights = copied.folder / self.case.weights
        if not self.case.may_be_sharded:
            pytest.skip("the files of the weights have fixed names")
        split_weights(weights)
        assert_same_checkpoints(release, copied)

    def test_config_of_other_versions_gives_the_same_checkpoint(
        self, release: SmallRelease, copied: SmallRelease, same_config: Mapping[str, object]
    ) -> None:
        with edited(copied.folder / self.case.config) as record:
            set_fields(record, same_config)
        assert_same_checkpoints(release, copied)

    def test_config_fields_out_of_range_are_refused(self) -> None:
        """The fields are those of the classes that the conversion module defines or imports."""
        assert self.case.plugin.convert is not None
        module = import_module(self.case.plugin.convert)
        for section in [value for value in vars(module).values() if isinstance(value, type)]:
            if issubclass(section, Section) and section is not Section:
                assert_refused_outside_ranges(section)

    def test_other_configs_are_refused(
        self, copied: SmallRelease, refused_config: tuple[Mapping[str, object], str]
    ) -> None:
        changes, message = refused_config
        with edited(copied.folder / self.case.config) as record:
            set_fields(record, changes)
        copied.assert_refused(message)

    def test_other_files_are_refused(self, copied: SmallRelease, refused_edit: tuple[str, Edit, str]) -> None:
        file, edit, message = refused_edit
        with edited(copied.folder / file) as content:
            edit(content)
        copied.assert_refused(message)

    def test_tokenizer_without_a_needed_token_is_refused(self, copied: SmallRelease, needed_token: str) -> None:
        with edited(copied.folder / self.case.tokenizer) as record:
            tokens = record["added_tokens"]
            record["added_tokens"] = [token for token in tokens if token["content"] != needed_token]
            assert len(record["added_tokens"]) == len(tokens) - 1
        copied.assert_refused(needed_token)

    def test_unknown_tensor_is_refused(self, copied: SmallRelease) -> None:
        with self._tensors(copied) as tensors:
            tensors["extra.weight"] = torch.zeros(1)
        copied.assert_refused("unknown: extra.weight")

    def test_missing_and_misshaped_tensors_are_refused(
        self, release: SmallRelease, tmp_path: Path, num_tensors: int
    ) -> None:
        with self._tensors(release.copied(tmp_path / "read")) as tensors:
            names = [name for name in tensors if name not in self.case.unneeded_tensors]
        for number, name in enumerate(spread(one_of_each_layer(names), num_tensors)):
            copy = release.copied(tmp_path / f"missing-{number}")
            with self._tensors(copy) as tensors:
                shape = tensors.pop(name).shape
            copy.assert_refused("missing: ", self.case.name_if_missing(name))
            with self._tensors(copy) as tensors:
                tensors[name] = torch.ones(*shape, 2)
            copy.assert_refused(name)

    @contextmanager
    def _tensors(self, release: SmallRelease) -> Iterator[dict[str, Tensor]]:
        """Yield the language model's tensors for editing."""
        with edited(release.folder / self.case.weights) as content:
            yield self.case.tensors_in(content)

    def test_published_sizes_fit_the_converter(self, published: Callable[[], PublishedSizes]) -> None:
        sizes = published()
        assert sorted(check(sizes.plan, on_meta(sizes.shapes), sizes.unused)) == sorted(sizes.unused)
        written = {entry.name: entry.written for planned in sizes.plan.values() for entry in (planned, *planned.also)}
        assert {name: written[name] for name in sizes.written} == dict(sizes.written)
        assert len(written) == sizes.num_written

    def test_prompts_have_the_expected_rows(self, releases: dict[str, SmallRelease], prompts_of_size: str) -> None:
        assert self.case.prompts is not None
        release = releases[prompts_of_size]
        for name, (inputs, rows) in self.case.prompts(release).items():
            prompt = release.preprocessor.prepare(RawRequest(**inputs))
            assert prompt.rows.dtype == np.int32
            assert prompt.rows.tolist() == rows.tolist(), f"{name}: expected {rows}, got {prompt.rows}"
            assert is_bounded(release, inputs, prompt), f"{name}: nothing ends a reply that goes on after its text"

    def test_invalid_inputs_are_refused(
        self, release: SmallRelease, refused_input: tuple[Mapping[str, Any], str]
    ) -> None:
        inputs, message = refused_input
        with pytest.raises(InvalidRequest) as refusal:
            release.preprocessor.prepare(RawRequest(**inputs))
        assert str(refusal.value).startswith(message), str(refusal.value)

    def test_inputs_beyond_the_limits_of_the_family_are_refused(self, release: SmallRelease) -> None:
        if not self.case.has_usual_requests or "text" not in release.family.tasks[0].needs:
            pytest.skip("a text alone is no request for this family")
        for inputs, message in inputs_beyond_limits(release.family):
            with pytest.raises(InvalidRequest) as refusal:
                release.preprocessor.prepare(RawRequest(**inputs))
            assert str(refusal.value).startswith(message), f"expected {message!r}, got {refusal.value}"

    def test_clause_that_continues_speech_has_the_rows_of_the_clause_before(self, release: SmallRelease) -> None:
        family = release.family
        tasks = [task for task in family.tasks if task.continues]
        if not tasks or self.case.prompts is None:
            pytest.skip("no task of this family continues speech, or the suite has no prompts of the family")
        codes = np.array([np.arange(1, 5) % len(ids) for ids in family.layout.audio])
        first = release.preprocessor.prepare(RawRequest(**asked("a b"))).rows
        for task in tasks:
            speech = {"codes": codes.tolist()}
            turns = [{"role": "user", "text": "a b"}, {"role": "assistant"} | speech]
            if task.continues == "voice":
                turns = [{"role": "system"} | speech | ({"text": "a b"} if "text" in task.system else {})]
            elif task.answers == "assistant":
                turns = [{"role": "assistant", "text": "a b"} | speech]
            inputs = talk(*turns, {"role": task.answers, "text": "c d"}) | {"task": task.name}
            rows = release.preprocessor.prepare(RawRequest(**inputs)).rows
            if task.continues == "turns":
                assert rows[: len(first)].tolist() == first.tolist()
                rows = rows[len(first) :]
            stream = family.layout.codebook_streams[0]
            spoken = codes[stream] + family.layout.audio[stream].start
            windows = np.lib.stride_tricks.sliding_window_view(rows[:, stream], len(spoken))
            assert (windows == spoken).all(axis=1).any()

    def test_special_tokens_in_a_text_are_characters(self, release: SmallRelease, marker: str, text_field: str) -> None:
        tokenizer = json.loads((release.folder / self.case.tokenizer).read_text())
        (marker_id,) = (token["id"] for token in tokenizer["added_tokens"] if token["content"] == marker)
        plain = release.preprocessor.prepare(request_with(text_field, "a b"))
        marked = release.preprocessor.prepare(request_with(text_field, f"a {marker} b"))
        num_markers = [text_ids(prompt, release.family).count(marker_id) for prompt in (plain, marked)]
        assert num_markers[0] == num_markers[1]

    def test_markers_that_the_release_does_not_mark_are_refused(
        self, copied: SmallRelease, refused_marker: str, text_field: str
    ) -> None:
        with edited(copied.folder / self.case.tokenizer) as record:
            for token in record["added_tokens"]:
                token["special"] = False
        with pytest.raises(InvalidRequest) as refusal:
            copied.preprocessor.prepare(request_with(text_field, f"a {refused_marker} b"))
        field = text_field if text_field == "text" else f"options.{text_field}"
        expected = f"{field}: expected none of the model's markers, got {refused_marker}"
        assert str(refusal.value).startswith(expected), str(refusal.value)

    @pytest.mark.engine
    def test_rows_equal_the_expected_ones(
        self,
        releases: dict[str, SmallRelease],
        expected_replies: Callable[[str], Mapping[str, ExpectedReply]],
        scheduling: "Scheduling",
    ) -> None:
        """Alone, in a batch with cached prompts, and with little memory also preempted."""
        release = releases[scheduling.size]
        replies = expected_replies(scheduling.size)
        prompts = {name: reply.prompt for name, reply in replies.items()}
        expected = dict[str, list[list[int]]]()
        arguments = {**self.case.engine, **scheduling.arguments}
        engine = self.start_engine(release.checkpoint, async_scheduling=scheduling.is_async, **arguments)
        try:
            for number, (name, reply) in enumerate(replies.items()):
                if isinstance(reply.rows, list):
                    expected[name] = reply.rows
                    if number < 2:
                        assert engine.run({name: reply.prompt})[name].rows == reply.rows, f"{name} alone"
                else:
                    expected[name] = engine.run({name: reply.prompt})[name].rows
                    reply.rows(np.array(expected[name], np.int64))
            answers = engine.run(prompts, {name: index for index, name in enumerate(prompts)})
            for name, answer in answers.items():
                assert answer.rows == expected[name], f"{name} in a batch"
            num_preemptions = sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer)
            assert (num_preemptions > 0) == scheduling.is_tight
            assert engine.is_clean()
        finally:
            engine.shutdown()

    @pytest.mark.engine
    def test_family_conforms(
        self, tmp_path: Path, releases: dict[str, SmallRelease], conformance: Mapping[str, Any]
    ) -> None:
        from stretto.testing import assert_family_conforms

        if not self.case.conforming_size:
            assert_family_conforms(self.case.plugin, tmp_path, **conformance)
            return
        checkpoint = releases[self.case.conforming_size].checkpoint

        def write(folder: Path, *_: Any, **__: Any) -> Path:
            return Path(shutil.copytree(checkpoint, folder, dirs_exist_ok=True))

        vocabulary = config_at(checkpoint)[VOCABULARY]
        assert_family_conforms(self.case.plugin, tmp_path, vocabulary, write, **conformance)


class Scheduling(NamedTuple):
    """Scheduling of a release's replies by an engine."""

    size: str
    is_async: bool
    is_tight: bool
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.size}-{'async' if self.is_async else 'sync'}"


def _conformances(case: FamilyCase) -> list[Any]:
    if case.conformance is None:
        return []
    return by_night(case.conformance) if case.conforms_by_night else [case.conformance]


def _schedulings(case: FamilyCase) -> Iterable[Any]:
    """Yield the settings of engines: the first size with much memory and the last with little, with each scheduler.

    By day, only the last size runs, with little memory and the scheduler that GPUs use.
    """
    tight = {**TIGHT, **case.tight}
    for is_tight, is_async in ((True, False), (False, True), (True, True), (False, False)):
        size = case.sizes[-1] if is_tight else case.sizes[0]
        scheduling = Scheduling(size, is_async, is_tight, tight if is_tight else {})
        is_night = not (is_tight and is_async)
        yield pytest.param(scheduling, id=str(scheduling), marks=pytest.mark.nightly if is_night else ())
