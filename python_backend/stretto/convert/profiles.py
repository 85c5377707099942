"""Serving profiles: values of batch, chunks and playout that fit together, by name.

A profile changes the values that Stretto computes for a model, in proportion. Options that the user names take
precedence (`--engine-args`), and so do the options of a request (`chunking`).
"""

import argparse
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stretto.convert.gpu_memory import check_first_chunk
from stretto.errors import CheckpointError
from stretto.family.audio_format import AudioFormat
from stretto.family.base import Family
from stretto.machine.sizing import CPU_BATCHED_ROWS, CPU_BLOCK_SIZE, GPU_BATCHED_ROWS

if TYPE_CHECKING:
    from stretto.codecs.base import CodecSpec


@dataclass(frozen=True)
class ServingProfile:
    """Values of a profile. The defaults change nothing.

    Attributes:
        slots: Share of the batch slots that the server uses. A step takes longer the more rows it has, and every
            stream waits for it.
        waiting: Requests that may wait for a slot, as a share of the slots in use. Each one waits for others to end.
        step_rows: Share of the rows per step. A long prompt is computed in several steps, between which streams go on.
        first_frames: Factor of the family's minimum first chunk; 0 for a minimum of one frame. The chunk has more
            frames if the decoder needs them to stay ahead of the player.
        steady_frames: Factor of the family's longest chunk. Longer chunks are fewer calls of the decoder and messages.
        playout_s: Time in seconds for which players are expected to buffer, so that later chunks may be longer.
        begins_early: True to use, on a GPU, all that shortens the first audio (`with_first_audio`). These options have
            not been measured, so no other profile sets them.
    """

    slots: float = 1.0
    waiting: float = 0.25
    step_rows: float = 1.0
    first_frames: int = 1
    steady_frames: int = 1
    playout_s: float = 0.0
    begins_early: bool = False

    def num_slots(self, num_slots: int) -> int:
        """Return the number of batch slots to use of `num_slots`; at least two, for a guided reply."""
        return min(num_slots, max(2, int(self.slots * num_slots)))

    def num_waiting(self, num_slots: int) -> int:
        """Return how many requests may wait for one of `num_slots` slots in use; at least one."""
        return max(1, int(self.waiting * num_slots))

    def num_step_rows(self, is_on_gpu: bool) -> int:
        """Return the maximum number of rows in a step."""
        rows = int(self.step_rows * (GPU_BATCHED_ROWS if is_on_gpu else CPU_BATCHED_ROWS))
        return rows // CPU_BLOCK_SIZE * CPU_BLOCK_SIZE

    def with_chunks(self, family: Family) -> Family:
        """Return the family with the chunk sizes of this profile."""
        steady = self.steady_frames * family.steady_chunk_frames
        first = min(max(1, self.first_frames * family.first_chunk_frames), steady)
        return replace(family, first_chunk_frames=first, steady_chunk_frames=steady)

    def chunking(self, family: Family) -> dict[str, Any]:
        """Return the default `chunking` of requests; empty if the family's values apply."""
        sizes = self.with_chunks(family)
        of_profile = {
            "first_frames": sizes.first_chunk_frames,
            "steady_frames": sizes.steady_chunk_frames,
            "playout_s": self.playout_s,
        }
        of_family = {
            "first_frames": family.first_chunk_frames,
            "steady_frames": family.steady_chunk_frames,
            "playout_s": 0.0,
        }
        return {} if of_profile == of_family else of_profile

    def with_first_audio(
        self, arguments: dict[str, Any], config: dict[str, Any], family: Family, spec: "CodecSpec", mode: str | None
    ) -> dict[str, Any]:
        """Add the engine arguments that shorten the first audio on a GPU, as far as the model permits them.

        Args:
            arguments: Other engine arguments, which take precedence.
            config: config.json of the checkpoint.
            family: The checkpoint's family.
            spec: Constants of its codec.
            mode: How the decoder computes convolutions on a GPU; None on a CPU, in float32.

        Raises:
            CheckpointError: If the engine cannot decode first chunks as `arguments` say.
        """
        if mode is not None and self.begins_early:
            chosen: dict[str, Any] = {"submit_early_ms": SUBMIT_EARLY_MS}
            if family.has_plain_frames and AudioFormat.from_config(config) is None:
                chosen["compilation_config"] = {"cudagraph_mode": "FULL"}
            with suppress(CheckpointError):
                check_first_chunk(mode, mode, family, spec)
                chosen["first_chunk"] = mode
            arguments = chosen | arguments
        if (first := arguments.get("first_chunk")) is not None:
            check_first_chunk(first, mode or "float32", family, spec)
        return arguments


SUBMIT_EARLY_MS = 3.0  # the host's part of a step of one row is 2.3 ms (`sizing`)
BALANCED = "balanced"
PROFILES = {
    # A quarter of the slots: on an H100, the host's part of a step is 4.8 ms at 64 rows and 12.3 ms at 256 (`sizing`).
    "latency": ServingProfile(slots=0.25, step_rows=0.25, first_frames=0, begins_early=True),
    BALANCED: ServingProfile(),
    # A queue as long as the batch keeps the batch full. Chunks are twice as long, and the first one four times.
    "throughput": ServingProfile(waiting=1.0, first_frames=4, steady_frames=2, playout_s=0.5),
}


def add_profile(output: argparse._ActionsContainer) -> None:
    """Add the option --profile to a parser or to a group of its options."""
    about = "batch, chunks and playout for short waits, for both, or for many streams; default: %(default)s"
    output.add_argument("--profile", choices=tuple(PROFILES), default=BALANCED, help=about)
