"""The options `output` and `chunking`: audio format and chunk sizes of the response."""

from dataclasses import replace

from stretto.errors import InvalidRequest
from stretto.families.base import Family
from stretto.records.sampling import ChunkingOptions, Delivery, OptionsRecord, OutputForm
from stretto.streams.chunking import ChunkPolicy

MAX_CHUNK_S = 10.0


def read_delivery(
    options: OptionsRecord, family: Family, frame_rate: float, held_frames: int, blocks: tuple[int, ...] = ()
) -> Delivery:
    """Return the output format and chunk policy from the options.

    Args:
        options: The request's options.
        family: The model's family, which has the default chunk sizes.
        frame_rate: The codec's frames per second.
        held_frames: The codec's right context in frames.
        blocks: Sizes in frames of the blocks that the codec decodes as a whole, the last one repeated; () for any.

    Raises:
        InvalidRequest: An option is outside its limits.
    """
    first, steady = family.first_chunk_frames, family.steady_chunk_frames
    default = ChunkPolicy(first, steady, frame_rate=frame_rate, held_frames=held_frames, blocks=blocks)
    output, policy = options.get("output", {}), _policy(options.get("chunking", {}), default)
    encoding = output.get("encoding", "pcm_f32le")
    form = OutputForm(encoding, output.get("sample_rate"), output.get("ring"), policy.deterministic)
    return Delivery(form, policy, output.get("codes", False))


def _policy(given: ChunkingOptions, default: ChunkPolicy) -> ChunkPolicy:
    steady = given.get("steady_frames", default.steady_frames)
    first = given.get("first_frames", min(default.first_frames, steady))
    most = max(steady if "steady_frames" not in given else 1, int(MAX_CHUNK_S * default.frame_rate))
    for name, frames, limit in (("steady_frames", steady, most), ("first_frames", first, steady)):
        if not 1 <= frames <= limit:
            raise InvalidRequest(f"options.chunking.{name}", f"an integer in [1, {limit}]", frames)
    playout_s = given.get("playout_s", default.playout_s)
    is_fixed = given.get("deterministic", default.deterministic)
    return replace(default, first_frames=first, steady_frames=steady, playout_s=playout_s, deterministic=is_fixed)
