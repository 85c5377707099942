"""Estimate for 1 to 1000 GPUs: streams, gateways, network, and cost per hour of speech. Computed, not measured.

    python -m benchmarks.fleet                     # the tables of docs/scale.md
    python -m benchmarks.fleet --gpu-price 3.20    # price of an hour of a GPU

Language model and codec share one GPU, as `benchmarks.sizing` estimates them. The cost of gateways per second of audio
is measured. The constants below are the other assumptions.
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

BUSY = 0.75  # share of a server's streams in use: deploy/kubernetes/scaling.yaml, deploy/ray
CHUNK_FRAMES = 25  # of a steady stream
GATEWAY_MS = 12.7  # processor time per second of mp3, the most expensive format (measured: docs/scale.md)
GATEWAY_BUSY = 0.6  # of a gateway's processor: the target of its autoscaler
GATEWAY_STREAMS = 256  # `--max-active` of a gateway
INSIDE_KBIT = 16 * 24.0 * 1.05  # server to gateway: 16-bit samples at 24 kHz, plus gRPC (estimated)
OUTSIDE_KBIT = {"pcm, wav": 16 * 24.0, "mp3, aac": 64.0, "opus": 32.0}  # `stretto_gateway.encoding.CODECS`
SIZES = (1, 8, 64, 1000)
# Language models with a codec in CODECS.
COUNTED = tuple(each for each in BACKBONES if any(each.name.split()[0] in codec.name for codec in CODECS))


@dataclass(frozen=True)
class Prices:
    """Prices of an hour, in one currency: a GPU with its share of a host, and a core of a gateway's host."""

    gpu: float = 2.50
    core: float = 0.04


@dataclass(frozen=True)
class Fleet:
    """`num_gpus` servers, each with a GPU for `streams` streams."""

    num_gpus: int
    streams: int

    @property
    def busy_streams(self) -> float:
        """Streams in use on all servers."""
        return BUSY * self.streams * self.num_gpus

    @property
    def gateway_cores(self) -> float:
        """Cores of gateways, each of which is one process on one core."""
        return max(self.busy_streams * GATEWAY_MS / 1e3 / GATEWAY_BUSY, self.busy_streams / GATEWAY_STREAMS)

    @property
    def inside_gbit(self) -> float:
        """Gbit per second between servers and gateways."""
        return self.busy_streams * INSIDE_KBIT / 1e6

    def outside_gbit(self, kbit: float) -> float:
        """Return Gbit per second to clients."""
        return self.busy_streams * kbit / 1e6

    def hour_of_speech(self, prices: Prices) -> float:
        """Return the cost of an hour of speech with all streams in use."""
        return (self.num_gpus * prices.gpu + self.gateway_cores * prices.core) / self.busy_streams


def codec_of(backbone: Backbone) -> CodecCost:
    """Return the codec of a model in COUNTED."""
    (found,) = [codec for codec in CODECS if backbone.name.split()[0] in codec.name]
    return found


def share_of_time(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Return the share of the time between two frames that a step and the codec take on one GPU."""
    codec = streams / max(1, streams_of_codec(codec_of(backbone), gpu, CHUNK_FRAMES))
    return step_ms(backbone, gpu, streams) * backbone.frame_rate / 1e3 + codec


def streams_of(backbone: Backbone, gpu: Gpu) -> int:
    """Return how many streams one GPU serves with both language model and codec; 0 if none in real time."""
    most = max(0, streams_in_memory(backbone, gpu))
    return max((n for n in range(1, most + 1) if share_of_time(backbone, gpu, n) <= SHARE_OF_TIME), default=0)


def tables(prices: Prices) -> str:
    """Return the tables in Markdown."""
    head = [gpu.name for gpu in GPUS]
    lines = ["| one GPU: streams, hour of speech | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for backbone in COUNTED:
        cells = (_cell(streams_of(backbone, gpu), prices) for gpu in GPUS)
        lines.append(f"| {backbone.name} | " + " | ".join(cells) + " |")
    one = streams_of(COUNTED[0], _gpu("H100 SXM"))
    outside = " | ".join(f"out, {name}" for name in OUTSIDE_KBIT)
    lines += ["", f"| GPUs | streams in use | gateway cores | servers to gateways | {outside} |"]
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
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-price", type=float, default=Prices.gpu, help="price of an hour; default: %(default)s")
    parser.add_argument("--core-price", type=float, default=Prices.core, help="price of an hour; default: %(default)s")
    arguments = parser.parse_args(words)
    print(tables(Prices(arguments.gpu_price, arguments.core_price)))


if __name__ == "__main__":
    main()
