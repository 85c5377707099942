"""Prompts for random checkpoints."""

from dataclasses import replace
from typing import Any

import numpy as np

from stretto.families.base import Family
from stretto.records.prompt import Prompt
from stretto.records.sampling import LatentSampling
from stretto.streams.layout import LatentSpec, Segment, words_of

LENGTHS = (5, 17, 40, 70)
TRACK_LENGTHS = (9, 0, 30, 4, 100)


def make_prompt(family: Family, index: int, task: str | None = None, **changes: Any) -> Prompt:
    """Return test prompt number `index`; lengths, tasks, guidance and temperatures vary with different periods.

    Args:
        family: Family of the checkpoint.
        index: Number of the prompt, which is also the seed of its ids.
        task: Name of the task; None to alternate.
        **changes: Fields of `SamplingConfig` to override.
    """
    tasks = [each.name for each in family.tasks]
    task = task or tasks[index % len(tasks)]
    if family.layout.latents is not None:
        return _latent_prompt(family, family.layout.latents, index, task, changes)
    random = np.random.default_rng(index)
    shape = LENGTHS[index % len(LENGTHS)], family.layout.num_input_streams
    rows = np.full(shape, family.layout.pad_id, np.int32)
    rows[:, 0] = random.integers(16, 47, len(rows))
    if Segment.AUDIO not in family.task(task).segments:
        _fill_with_audio(rows, family, random)
    temperature = (0.0, 0.9)[index // 2 % 2]
    sampling = family.task(task).sampling
    max_text_rows = 12 + index % 7
    if family.code_track is not None and index % 4:  # most replies end with their recording
        max_text_rows = sampling.text.max_rows
    sampling = replace(
        sampling,
        text=replace(sampling.text, min_rows=5, max_rows=max_text_rows, temperature=temperature),
        audio=replace(
            sampling.audio, min_rows=5, max_rows=20 + index % 9, temperature=temperature, top_k=10, top_p=0.9
        ),
        guidance_scale=(2.0, 1.0, 3.0)[index % 3] if family.guided_streams else 1.0,
        script_temperature=temperature,
        seed=1000 + index,
        schedule=(None, *(each.name for each in family.bursts.schedules))[index % 4] if family.bursts else None,
    )
    delayed_tail = None
    if not family.warm_up.is_sampled and task == "audio_lm":  # the reply continues the audio of the prompt
        delayed_tail = np.stack([random.integers(ids.start, ids.stop, 8) for ids in family.layout.audio[1:]], 1)
        delayed_tail = delayed_tail.astype(np.int32)
    return Prompt(task, rows, replace(sampling, **changes), delayed_tail=delayed_tail, track=make_track(family, index))


def _latent_prompt(family: Family, latents: LatentSpec, index: int, task: str, changes: dict[str, Any]) -> Prompt:
    """Return a prompt that ends with frames if `index` is odd; steps, noise and guidance vary.

    In a family with marks, it has latents of a recording instead, and ends with the mark that begins audio.
    """
    random = np.random.default_rng(index)
    rows = np.zeros((LENGTHS[index % len(LENGTHS)], family.layout.num_input_streams), np.int32)
    rows[:, 0] = random.integers(16, 47, len(rows))
    if index % 2:
        at = slice(-5, -1) if latents.marks else slice(-4, None)
        rows[at, 0] = latents.voice_ids.start if latents.marks else family.layout.audio[0].start
        rows[at, 1 : 1 + latents.num_drawn] = words_of(random.standard_normal((4, latents.num_drawn)))
    if latents.marks:
        rows[-1, 0] = latents.marks[0]
    defaults, steps = family.task(task).sampling, latents.steps
    temperature, scale = (0.0, 0.9)[index // 2 % 2], (2.0, 1.0, 3.0)[index % 3]
    if latents.has_unit_noise:
        temperature = 1.0
    given = LatentSampling(
        steps=steps[index % min(len(steps), 4)],
        tail_rows=1 + index % 3,
        guidance_scale=scale if latents.is_guided else 1.0,
    )
    audio = replace(defaults.audio, min_rows=5, max_rows=20 + index % 9, temperature=temperature)
    sampling = replace(defaults, audio=audio, latents=given, seed=1000 + index)
    if family.guided_streams:
        sampling = replace(sampling, guidance_scale=scale)
    return Prompt(task, rows, replace(sampling, **changes))


def make_track(family: Family, index: int) -> tuple[int, ...]:
    """Return the ids of a streamed text, often shorter than the reply, sometimes longer, or the codes of a recording.

    Empty if the family has neither.
    """
    track, random, codes = family.text_track, np.random.default_rng(index), family.code_track
    if codes is not None:
        shape = 20 + 7 * (index % 5), len(codes.streams)
        return tuple(random.integers(16, family.layout.vocab_size, shape).reshape(-1).tolist())
    if track is None:
        return ()
    return (*random.integers(16, 47, TRACK_LENGTHS[index % len(TRACK_LENGTHS)]).tolist(), track.end_id)


def _fill_with_audio(rows: np.ndarray, family: Family, random: np.random.Generator) -> None:
    """Write random codes to every stream after the first, as in a prompt with audio."""
    for stream, ids in enumerate(family.layout.audio[1:], 1):
        rows[1:-1, stream] = random.integers(ids.start, ids.stop, len(rows) - 2)
    if family.script:
        rows[1:-1, family.script.index_stream] = family.script.index_base + 1 + np.arange(len(rows) - 2) % 200


def make_prompts(family: Family, count: int) -> dict[str, Prompt]:
    """Return the first `count` prompts by request id."""
    return {f"r{index}": make_prompt(family, index) for index in range(count)}
