"""Checks of option values that depend on the family; the schema has the range of each number."""

from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.records.sampling import NUMBER_OPTIONS, LatentSampling, SamplingConfig
from stretto.streams.layout import LatentSpec


def check_sampling(sampling: SamplingConfig, family: Family, task: Task) -> None:
    """Raise InvalidRequest if sampling parameters are out of range, contradict each other or do not fit the family.

    The preprocessor calls this function for the options of a request, and `SpeechLLM` again for every prompt, because a
    Python program has no preprocessor.
    """
    sampling.check()
    if family.layout.latents is not None:
        _check_latents(sampling, family.layout.latents, family)
    for field, option in NUMBER_OPTIONS.items():
        if option.is_for_first and family.drawing.computes_first:
            reason = f"{family.name} samples no id of the first stream"
            _require_off(option.name, getattr(sampling, field), option.off, reason)
    if sampling.repetition_penalty != 1.0 and family.drawing.penalized is None:
        expected = f"1.0 ({family.name} does not support this penalty)"
        raise InvalidRequest("options.repetition_penalty", expected, sampling.repetition_penalty)
    guides_all = family.guidance_scales or (family.layout.latents is not None and family.layout.latents.has_unit_noise)
    if guides_all and sampling.policy != "always":
        raise InvalidRequest("options.guidance.policy", "'always' (this model guides every frame)", sampling.policy)
    if sampling.script_temperature != 1.0 and "script_temperature" not in family.options:
        expected = f"1.0 ({family.name} does not support this temperature)"
        raise InvalidRequest("options.script_temperature", expected, sampling.script_temperature)
    if any(sampling.redraw_from) and not family.has_all_frames:
        expected = f"0 only ({family.name} may leave out frames)"
        raise InvalidRequest("options.redraw_from", expected, shown(sampling.redraw_from))
    if sampling.has_pair:
        _check_pair(sampling, family, task)
    if sampling.schedule is not None:
        _check_schedule(sampling.schedule, family)


def _check_latents(sampling: SamplingConfig, spec: LatentSpec, family: Family) -> None:
    """Check the number of solver steps; reject options for sampled codes."""
    audio = sampling.audio
    latents = sampling.latents
    if latents is None:
        raise InvalidRequest("options.latents", "an object", "none")
    if latents.steps not in spec.steps:
        expected = f"an integer in [{spec.steps.start}, {spec.steps.stop - 1}]"
        raise InvalidRequest("options.latents.steps", expected, latents.steps)
    if latents.guidance_scale != 1.0 and not family.guides_rows:
        raise _no_guidance(latents, family)
    if spec.has_unit_noise and audio.temperature != 1.0:
        expected = "1.0 (the noise of this model has a fixed variance)"
        raise InvalidRequest("options.audio.temperature", expected, audio.temperature)
    reason = f"frames of {family.name} have no ids"
    _require_off("audio.top_k", audio.top_k, 0, reason)
    _require_off("audio.top_p", audio.top_p, 1.0, reason)
    for field, option in NUMBER_OPTIONS.items():
        if option.off is not None and option.name.startswith("audio."):
            _require_off(option.name, getattr(sampling, field), option.off, reason)


def _require_off(name: str, value: float, off: float | None, reason: str) -> None:
    """Raise InvalidRequest unless the option `name` has the value that has no effect."""
    if value != off:
        raise InvalidRequest(f"options.{name}", f"{off} ({reason})", value)


def _check_pair(sampling: SamplingConfig, family: Family, task: Task) -> None:
    if not task.has_audio_segment:
        expected = f"1.0, because task {task.name!r} has no audio segment"
        raise InvalidRequest("options.guidance_scale", expected, sampling.guidance_scale)
    if not family.guided_streams:
        raise _no_guidance(sampling, family)
    if family.frame_rate <= 0.0 and sampling.policy != "always":
        expected = f"'always' (the frame rate of {family.name} is unknown)"
        raise InvalidRequest("options.guidance.policy", expected, sampling.policy)


def _no_guidance(guided: SamplingConfig | LatentSampling, family: Family) -> InvalidRequest:
    expected = f"1.0, because {family.name} has no guidance"
    return InvalidRequest("options.guidance_scale", expected, guided.guidance_scale)


def _check_schedule(schedule: str | tuple[int, ...], family: Family) -> None:
    """Check the name of a schedule, or its numbers M, m, M, m, …"""
    if not isinstance(schedule, str | tuple):
        raise InvalidRequest("options.schedule", "a name or a tuple of numbers", shown(schedule))
    got = shown(schedule if isinstance(schedule, str) else list(schedule))
    steps = family.mechanism.steps
    if steps is None:
        raise InvalidRequest("options.schedule", "no value (this model generates one row per step)", got)
    if isinstance(schedule, tuple):
        steps.check_numbers(schedule)
        return
    if schedule not in steps.names:
        raise InvalidRequest("options.schedule", f"one of {', '.join(steps.names)}, or numbers", got)
