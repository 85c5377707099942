"""How many frames the next chunk carries: few at first, so that sound starts early, then twice as many each time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """Chunk sizes `first_frames`, twice that, four times that, ... up to `steady_frames`."""

    first_frames: int
    steady_frames: int

    def __post_init__(self) -> None:
        if not 1 <= self.first_frames <= self.steady_frames:
            raise ValueError(f"need 1 <= first <= steady frames, got {self.first_frames} and {self.steady_frames}")

    def size(self, index: int) -> int:
        """Frames of the audio chunk number `index`, from 0."""
        return min(self.first_frames << min(index, 32), self.steady_frames)
