"""Conformance test of a model family: the engine generates the same ids as the slow reference."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stretto.families.base import Family
from stretto.families.plugin import FamilyPlugin
from stretto.families.registry import plugin as registered
from stretto.plugins import CODECS, find
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint
from stretto.testing.engine import Answer, Engine
from stretto.testing.prompts import make_prompts
from stretto.testing.reference import Reference, Row

# Fewer rows per step than most prompts have, and four slots.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 160}
NUM_BLOCKS = 7  # KV blocks: little more than one reply needs; a CFG pair has two more
MIN_LEAD = 1e-5  # minimum lead of the reference's decisions, in logits
NUM_ALONE = 3  # number of prompts that are also run alone


def assert_family_conforms(
    plugin: FamilyPlugin,
    folder: Path,
    vocabulary: Mapping[str, Any] | None = None,
    write: Callable[..., Path] = write_checkpoint,
    num_prompts: int = 10,
    **shape: Any,
) -> None:
    """Assert that a family is registered, and that the engine's replies equal those of the slow reference.

    Replies are generated alone, and then in one batch by an engine with so few KV blocks that some are preempted. All
    ids of all rows must equal those of the reference, so replies alone, batched and preempted are equal.

    The reference cannot generate latents. If a family's frames are latents, all words in a batch must have the same
    bits as those of the same reply alone; compare latents with another implementation in a test of the family.

    Args:
        plugin: Plug-in of the family.
        folder: Folder for a random checkpoint.
        vocabulary: `speech_vocabulary` of a small model; None for the published one.
        write: Function that writes a random checkpoint, with the arguments of `write_checkpoint`.
        num_prompts: Number of prompts.
        **shape: Additional arguments of `write`, such as `hidden`, `layers`, `backbone` and `seed`.

    Raises:
        AssertionError: If the family does not conform. The message names the request and the first row that differs.
    """
    assert registered(plugin.name) is plugin, f"{plugin.name}: expected this plug-in under its name in stretto.families"
    family = plugin.build(vocabulary)
    assert family.name == plugin.name, f"{plugin.name}: build returns a family called {family.name}"
    assert find(CODECS, family.codec) is not None, f"{plugin.name}: no installed codec is called {family.codec}"
    write(folder, family, plugin.name, vocabulary=vocabulary, **shape)
    prompts = make_prompts(family, num_prompts)
    are_latents = family.layout.latents is not None
    expected = {} if are_latents else expected_rows(folder, family, prompts)
    has_long_pairs = bool(family.guided_streams) and not family.unconditional.begins_with_mark
    engine = Engine(folder, **TIGHT, num_gpu_blocks_override=NUM_BLOCKS + 2 * has_long_pairs)
    try:
        if are_latents:
            expected = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        for name in [] if are_latents else list(prompts)[:NUM_ALONE]:
            _compare(f"{name} alone", engine.run({name: prompts[name]})[name].rows, expected[name])
        answers = engine.run(prompts)
        for name, answer in answers.items():
            _compare(f"{name} in a batch", answer.rows, expected[name])
        assert num_preemptions(answers) > 0, "no reply was preempted: expected more or longer prompts"
        assert engine.is_clean(), "the engine keeps state of requests that have ended"
    finally:
        engine.shutdown()


def expected_rows(folder: Path, family: Family, prompts: Mapping[str, Prompt]) -> dict[str, list[Row]]:
    """Return the reference's replies by request id: the ids of the output streams in every row."""
    reference = Reference(folder, family, TIGHT["max_model_len"])
    found = {}
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt)
        assert lead > MIN_LEAD, f"{name}: two ids are equally likely in the reference; choose another seed"
        found[name] = [row[: family.layout.num_output_streams] for row in rows]
    return found


def num_preemptions(answers: Mapping[str, Answer]) -> int:
    """Return the total number of preemptions of these replies."""
    return sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer is not None)


def _compare(name: str, rows: list[Row], expected: list[Row]) -> None:
    if rows != expected:
        index = next((i for i, (own, other) in enumerate(zip(rows, expected, strict=False)) if own != other), len(rows))
        own, other = (found[index] if index < len(found) else "the end" for found in (rows, expected))
        raise AssertionError(f"{name}: row {index} of the reply: expected {other}, got {own}")
