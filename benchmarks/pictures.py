"""The pictures that are drawn of results: which fields of which benchmark over what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plot:
    """One picture: `fields` (dotted where nested) of the lines of a benchmark over their field `over`: curves, or bars
    where that is a name.

    by: a field of which every value has lines of its own. only: values that a line must have to be drawn. goal: a level
    drawn as a dashed line. knee: a field that says which place on the axis is marked as such.
    """

    name: str
    benchmark: str
    over: str
    fields: tuple[str, ...]
    title: str
    label: str
    by: str | None = None
    only: Mapping[str, Any] = field(default_factory=dict)
    goal: float | None = None
    knee: str | None = None


PLOTS = (
    Plot(
        "speech_retention",
        "speech",
        "concurrency",
        ("cfg_retention", "triton_tax"),
        "The ensemble: throughput kept under guidance, and what Triton costs",
        "ratio",
    ),
    Plot(
        "speech_latency",
        "speech",
        "concurrency",
        ("audio_ttfp_p50", "audio_ttfp_p95", "first_sound_p50", "itl_p95"),
        "The ensemble: when sound arrives",
        "seconds",
    ),
    Plot(
        "speech_throughput",
        "speech",
        "concurrency",
        ("audio_throughput_guided", "audio_throughput_unguided", "audio_throughput_engine"),
        "The ensemble: seconds of audio per second",
        "s/s",
    ),
    Plot(
        "engine_retention",
        "engine",
        "requests",
        ("cfg_retention", "engine_efficiency", "engine_efficiency_unguided"),
        "The engine's decode steps: guided against unguided, and against stock vLLM",
        "ratio",
        goal=0.85,
    ),
    Plot(
        "decoder_live",
        "decoder_live",
        "streams",
        ("audio_ttfp_p50", "audio_ttfp_p95", "itl_p50", "audio_underrun_p50", "audio_underrun_p95"),
        "The decoder alone: live streams of the bundled codec, frames as fast as they are played",
        "seconds",
        only={"codec": "tiny", "device": "cpu", "frames_per_s": 25.0, "clock": "processor"},
    ),
    Plot(
        "families_ttfp",
        "families",
        "concurrency",
        ("audio_ttfp_p50", "mixed.audio_ttfp_p50"),
        "Published families in small: first audio, alone and beside requests to listen",
        "seconds",
        by="family",
    ),
    Plot(
        "families_rtf",
        "families",
        "concurrency",
        ("audio_rtf_p50", "mixed.audio_rtf_p50"),
        "Published families in small: wall time by seconds of audio",
        "s/s",
        by="family",
    ),
    Plot(
        "families_retention",
        "families",
        "concurrency",
        ("cfg_retention", "mixed.throughput_ratio"),
        "Published families in small: throughput kept under guidance, and beside listening",
        "ratio",
        by="family",
    ),
    Plot(
        "families_open",
        "families_open",
        "rate",
        ("first_sound_p50", "first_sound_p95"),
        "Requests at random times: first audible sample by requests a second",
        "seconds",
        by="family",
    ),
    Plot(
        "open_loop",
        "open_loop",
        "rate",
        ("first_sound_p50", "first_sound_p95", "refused"),
        "Requests at random times: first audible sample, share refused, by the target of first frames",
        "seconds, share",
        by="first_frame_target",
        only={"arrivals": "poisson"},
        knee="knee",
    ),
    Plot(
        "open_loop_goodput",
        "open_loop",
        "rate",
        ("goodput", "requests_per_s"),
        "Requests at random times: heard in time and without a gap, by the target of first frames",
        "requests/s",
        by="first_frame_target",
        only={"arrivals": "poisson"},
        knee="knee",
    ),
    Plot(
        "frame_parts",
        "frame_parts",
        "requests",
        tuple(f"cpu_ms_per_frame.{part}" for part in ("talker", "predictor", "rest", "codec")),
        "Qwen3-TTS in small: where a frame's processor time goes",
        "ms",
        only={"family": "qwen3-tts-small"},
    ),
    Plot(
        "layout_frames",
        "layout",
        "requests",
        ("frames_per_cpu_s",),
        "Bagpiper's streams on random weights, guided: frames by second of processor time",
        "frames/s",
        only={"layout": "bagpiper-small", "guidance_scale": 3.0},
    ),
    Plot(
        "overload_underrun",
        "overload",
        "requests",
        ("without_underrun_always", "without_underrun_adaptive", "guided_share_adaptive"),
        "More streams than can be guided: those without a gap, guided always and adaptively",
        "share",
        only={"layout": "bagpiper-small"},
    ),
    Plot(
        "scheduler_ratio",
        "scheduler",
        "pairs",
        ("scheduler_ratio",),
        "Scheduling pairs against stock vLLM with as many rows",
        "ratio of processor time",
    ),
    Plot(
        "schedules_ids",
        "schedules",
        "streams",
        ("over_vanilla", "allowed"),
        "VITA-Audio's schedules: ids by second of processor time over one id a forward pass",
        "ratio",
        by="schedule",
    ),
    Plot(
        "schedules_passes",
        "schedules",
        "schedule",
        ("passes_to_first_code", "passes_to_first_block"),
        "VITA-Audio's schedules: what comes before the first sound",
        "forward passes",
    ),
)
