"""Fair load of speech requests: random times, the lengths of read sentences, a warm-up, and fast enough clients.

Benchmarks of other servers (github.com/nari-labs/benchmarks, github.com/sgl-project/sglang-omni) send the 1,088 English
sentences of Seed-TTS's evaluation set. Replies have forced lengths here, because random weights end at random. The
lengths are sampled from SENTENCE_S with the request's seed. Requests arrive at random times, those of the warm-up at
the same rate as the measured ones. A client with a late event loop reports late arrivals, so its lag is measured, too.
If it is too high, the load is repeated with more client processes.
"""

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from benchmarks.loads import Load, Speak, check, run_open, summarise
from lab.texts import texts
from stretto_client import SpeechClient
from stretto_client.capacity.client_lag import lag
from stretto_client.capacity.traces import Trace, percentiles

# Duration of replies in seconds: 20 quantiles of a log-normal distribution with the mean of 4.4 s and a deviation of
# 0.35 of the logarithm. Both are estimates: the set's sentences have about ten words, and servers that run at known
# multiples of real time report end-to-end times for them.
SENTENCE_S = (
    *(2.08, 2.5, 2.77, 2.98, 3.18, 3.36, 3.53, 3.7, 3.87, 4.05),
    *(4.23, 4.42, 4.63, 4.85, 5.1, 5.39, 5.74, 6.19, 6.85, 8.22),
)
MOST_LAG_S = 0.005  # 95th percentile up to which a client's own delay is small beside a first audio of 20 ms

# Returns a function that sends requests with a client.
Speaker = Callable[[SpeechClient], Speak]


@dataclass(frozen=True)
class FairLoad:
    """Requests at random times.

    Attributes:
        rate: Mean number of requests per second, of all clients.
        warm_up_s: Seconds of requests at the same rate before the measured ones.
        guidance_scale: Guidance scale; None for a model that is not guided.
        text_rows: Forced number of text rows before the audio; None if they are not forced.
    """

    rate: float
    number: int
    warm_up_s: float = 30.0
    frame_rate: float = 12.5
    guidance_scale: float | None = None
    text_rows: int | None = None

    def load(self) -> Load:
        lengths = tuple(round(seconds * self.frame_rate) for seconds in SENTENCE_S)
        return Load(1, self.number, None, self.guidance_scale, self.text_rows, lengths)

    def of_one(self, num_clients: int) -> "FairLoad":
        """Return the share of one of `num_clients` clients."""
        return replace(self, rate=self.rate / num_clients, number=ceil(self.number / num_clients))


async def measure_fair(
    address: str, speaker: Speaker, load: FairLoad, num_clients: int = 1, most_clients: int = 4
) -> dict[str, Any]:
    """Run a load with enough client processes to keep up, and return the record.

    Args:
        speaker: Function that other processes can import.
        most_clients: Number of client processes beyond which the load is not repeated.
    """
    while True:
        traces, late_s = await run_clients(address, speaker, load, num_clients)
        check(traces)
        lag = percentiles("client_lag", late_s)
        if lag["client_lag_p95"] <= MOST_LAG_S or 2 * num_clients > most_clients:
            break
        num_clients *= 2
    wall_s = max(trace.finished or 0.0 for trace in traces) - min(trace.sent for trace in traces)
    return {"rate": load.rate, "warm_up_s": load.warm_up_s, "clients": num_clients, **summarise(traces, wall_s), **lag}


async def run_clients(
    address: str, speaker: Speaker, load: FairLoad, num_clients: int
) -> tuple[list[Trace], list[float]]:
    """Run a load in `num_clients` processes; return the measured traces, and the event loops' lags in seconds.

    A single client runs in this process. The sum of requests at random times in several processes is at random times.
    """
    if num_clients == 1:
        return await run_client(address, speaker, load, 0)
    share = load.of_one(num_clients)
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(num_clients, multiprocessing.get_context("spawn")) as pool:
        runs = (
            loop.run_in_executor(pool, run_in_process, address, speaker, share, index) for index in range(num_clients)
        )
        parts = await asyncio.gather(*runs)
    traces = [trace for measured, _ in parts for trace in measured]
    return traces, [seconds for _, late_s in parts for seconds in late_s]


def run_in_process(address: str, speaker: Speaker, load: FairLoad, index: int) -> tuple[list[Trace], list[float]]:
    """Run client number `index` in this process (`run_client`)."""
    return asyncio.run(run_client(address, speaker, load, index))


async def run_client(address: str, speaker: Speaker, load: FairLoad, index: int) -> tuple[list[Trace], list[float]]:
    """Run client number `index`; return its measured traces, and its event loop's lags in seconds."""
    async with SpeechClient(address) as client, lag() as late_s:
        traces, _ = await run_open(load.load(), load.rate, speaker(client), texts(), load.warm_up_s, index)
    return traces, late_s
