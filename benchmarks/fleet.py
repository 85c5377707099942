"""From one GPU to a thousand: streams, gateways, network and cost of an hour of speech. Arithmetic, not measurement.

    python -m benchmarks.fleet                     # the tables of docs/scale.md
    python -m benchmarks.fleet --gpu-price 3.20    # an hour of a GPU costs that much

Of language model and codec on one GPU, as `benchmarks.sizing` estimates them; of gateways by what a second of audio
costs them, which is measured. What is assumed beside that are the constants below.
"""

import argparse
from dataclasses import dataclass

from benchmarks.sizing import (
    BACKBONES,
    CODECS,
    GPUS,
    SHARE_OF_TIME,
    Backbone,
    CodecCost,
    Gpu,
    step_ms,
    streams_in_memory,
    streams_of_codec,
)

BUSY = 0.75  # of the streams that a server holds, that it is given: deploy/kubernetes/scaling.yaml, deploy/ray
CHUNK_FRAMES = 25  # of a steady stream
GATEWAY_MS = 12.7  # of processor time for a second of mp3, of all formats the most (measured: docs/scale.md)
GATEWAY_BUSY = 0.6  # of a gateway's processor: the target of its autoscaler
GATEWAY_STREAMS = 256  # `--max-active` of a gateway
INSIDE_KBIT = 16 * 24.0 * 1.05  # server to gateway: 16-bit samples at 24 kHz, and what gRPC adds (estimated)
OUTSIDE_KBIT = {"pcm, wav": 16 * 24.0, "mp3, aac": 64.0, "opus": 32.0}  # `stretto_gateway.encoding.CODECS`
SIZES = (1, 8, 64, 1000)
# Language models whose codec's operations are counted.
COUNTED = tuple(each for each in BACKBONES if any(each.name.split()[0] in codec.name for codec in CODECS))


@dataclass(frozen=True)
class Prices:
    """Of an hour, in the same money: a GPU with its share of a host, and a core of a gateway's host."""

    gpu: float = 2.50
    core: float = 0.04


@dataclass(frozen=True)
class Fleet:
    """`num_gpus` servers, each with a GPU that holds `streams` at once."""

    num_gpus: int
    streams: int

    @property
    def busy_streams(self) -> float:
        """That are given to all of them."""
        return BUSY * self.streams * self.num_gpus

    @property
    def gateway_cores(self) -> float:
        """That gateways need, each of which is one process and so one core."""
        return max(self.busy_streams * GATEWAY_MS / 1e3 / GATEWAY_BUSY, self.busy_streams / GATEWAY_STREAMS)

    @property
    def inside_gbit(self) -> float:
        """A second, between servers and gateways."""
        return self.busy_streams * INSIDE_KBIT / 1e6

    def outside_gbit(self, kbit: float) -> float:
        """A second, to callers."""
        return self.busy_streams * kbit / 1e6

    def hour_of_speech(self, prices: Prices) -> float:
        """What an hour of speech costs while as many streams run as are given."""
        return (self.num_gpus * prices.gpu + self.gateway_cores * prices.core) / self.busy_streams


def codec_of(backbone: Backbone) -> CodecCost:
    """That of the family, one of COUNTED."""
    (found,) = [codec for codec in CODECS if backbone.name.split()[0] in codec.name]
    return found


def share_of_time(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Of the time between two frames, that a step and the codec's work of so many streams take on one GPU."""
    codec = streams / max(1, streams_of_codec(codec_of(backbone), gpu, CHUNK_FRAMES))
    return step_ms(backbone, gpu, streams) * backbone.frame_rate / 1e3 + codec


def streams_of(backbone: Backbone, gpu: Gpu) -> int:
    """How many streams one GPU holds with the codec beside the language model; 0 where none is in real time."""
    most = max(0, streams_in_memory(backbone, gpu))
    return max((n for n in range(1, most + 1) if share_of_time(backbone, gpu, n) <= SHARE_OF_TIME), default=0)


def tables(prices: Prices) -> str:
    """The tables in Markdown."""
    head = [gpu.name for gpu in GPUS]
    lines = ["| one GPU: streams, hour of speech | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for backbone in COUNTED:
        cells = (_cell(streams_of(backbone, gpu), prices) for gpu in GPUS)
        lines.append(f"| {backbone.name} | " + " | ".join(cells) + " |")
    one = streams_of(COUNTED[0], _gpu("H100 SXM"))
    outside = " | ".join(f"out, {name}" for name in OUTSIDE_KBIT)
    lines += ["", f"| GPUs | streams given | gateway cores | servers to gateways | {outside} |"]
    lines.append("|---|" + "---|" * (3 + len(OUTSIDE_KBIT)))
    for num_gpus in SIZES:
        fleet = Fleet(num_gpus, one)
        out = " | ".join(f"{fleet.outside_gbit(kbit):.2f}" for kbit in OUTSIDE_KBIT.values())
        row = (
            f"| {num_gpus} | {fleet.busy_streams:,.0f} | {fleet.gateway_cores:,.1f} | {fleet.inside_gbit:.2f} | {out} |"
        )
        lines.append(row)
    return "\n".join(lines)


def _gpu(name: str) -> Gpu:
    return next(gpu for gpu in GPUS if gpu.name == name)


def _cell(streams: int, prices: Prices) -> str:
    return f"**{streams}**, {Fleet(1, streams).hour_of_speech(prices):.3f}" if streams else "–"


def main(words: list[str] | None = None) -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-price", type=float, default=Prices.gpu, help="of an hour; default: %(default)s")
    parser.add_argument("--core-price", type=float, default=Prices.core, help="of an hour; default: %(default)s")
    arguments = parser.parse_args(words)
    print(tables(Prices(arguments.gpu_price, arguments.core_price)))


if __name__ == "__main__":
    main()
