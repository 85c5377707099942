"""Which token ids each stream of a row may carry, and by how many rows it trails stream 0.

A row is what the language model reads and writes in one step: `num_output_streams` sampled ids, then
`num_input_only` ids that it only reads. Ids are absolute in one vocabulary shared by all streams.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class StreamLayout:
    """The streams of a family.

    audio: for each output stream, the interval of ids it may carry in an audio segment; of a codebook, one per code.
    extra: for each output stream, single ids that it may carry there besides, which are no codes: pads, markers.
    delays: for each output stream, the rows by which it trails stream 0 (`delays[0] == 0`).
    codebook_streams: the output streams that are codebooks of the codec, in the codec's order.
    pad_id: what a stream carries where it has nothing to say. pad_is_silent: whether it adds nothing to the embedding
    of its row then; on stream 0 it always does.
    """

    vocab_size: int
    audio: tuple[range, ...]
    delays: tuple[int, ...]
    codebook_streams: tuple[int, ...]
    num_input_only: int = 0
    pad_id: int = 0
    extra: tuple[tuple[int, ...], ...] = ()
    pad_is_silent: bool = True

    def __post_init__(self) -> None:
        if len(self.delays) != len(self.audio) or self.delays[0] != 0:
            raise ValueError(f"delays must start with 0, one per stream of {len(self.audio)}, got {self.delays}")
        if min(self.delays) < 0:
            raise ValueError(f"delays must be >= 0, got {self.delays}")
        if any(ids.stop > self.vocab_size or ids.start < 0 for ids in self.audio):
            raise ValueError(f"intervals must lie in [0, {self.vocab_size}), got {self.audio}")
        if not all(0 <= s < len(self.audio) for s in self.codebook_streams):
            raise ValueError(f"codebook_streams must be in [0, {len(self.audio)}), got {self.codebook_streams}")
        if self.extra and len(self.extra) != len(self.audio):
            raise ValueError(f"extra must have an entry per stream of {len(self.audio)}, got {len(self.extra)}")
        if any(not 0 <= token < self.vocab_size for ids in self.extra for token in ids):
            raise ValueError(f"extra ids must lie in [0, {self.vocab_size}), got {self.extra}")
        if len({len(self.audio[s]) for s in self.codebook_streams}) > 1:
            raise ValueError("all codebooks must have the same size")

    @cached_property
    def num_output_streams(self) -> int:
        return len(self.audio)

    @cached_property
    def num_input_streams(self) -> int:
        return self.num_output_streams + self.num_input_only

    @cached_property
    def num_codebooks(self) -> int:
        return len(self.codebook_streams)

    @cached_property
    def codebook_size(self) -> int:
        return len(self.audio[self.codebook_streams[0]])

    @cached_property
    def max_delay(self) -> int:
        return max(self.delays)
