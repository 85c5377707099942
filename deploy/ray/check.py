"""Fault and scaling tests of the Ray application under load, on three Ray nodes on this machine.

    PYTHONPATH=deploy/ray python deploy/ray/check.py --command ".venv/bin/stretto serve" PHASE...

Run it in an environment of requirements/ray.txt. Phases run in the given order:

    up        load scales from 1 to 3 servers
    affinity  turns of a conversation reach the same server
    server    kill -9 of Triton while it streams
    update    deployment of another version under load
    node      kill -9 of a node and all its processes; another node replaces it
    silence   like node, with SIGSTOP
    down      scales down to one server

Each phase prints one line of JSON. It fails after --limit seconds and then reports Ray's status. The exit code is 0 if
all phases met their requirements.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

from stretto_ray.app import FAILURES, INGRESS, SERVER, Settings, build
from stretto_ray.leasing import leasing
from stretto_ray.local_nodes import add_node, has, launchers, processes_on
from stretto_ray.seeded_callers import SENTENCE, TEXT, Callers, Tally

APP = "stretto"
PORT = 18_103
CPUS = 2
NEW = 2
STATES = {"status", "message", "status_trigger", "replica_states"}


def status() -> dict[str, Any]:
    """Return Ray's status of the application and its deployments, with replica counts by state."""
    applications = serve.status().applications
    if APP not in applications:
        return {"status": "none"}
    application = applications[APP]
    deployments = {
        name: {key: getattr(deployment, key) for key in STATES} for name, deployment in application.deployments.items()
    }
    return {"status": application.status, "message": application.message, "deployments": deployments}


def running() -> int:
    """Return the number of running servers; 0 while any server is in another state."""
    states = status().get("deployments", {}).get(SERVER, {}).get("replica_states", {})
    return int(states.get("RUNNING", 0)) if sum(states.values()) == states.get("RUNNING", 0) else 0


async def until(claim: Callable[[], bool]) -> float:
    """Wait until `claim` is true and return the seconds it took."""
    begun = time.monotonic()
    while not await asyncio.to_thread(claim):
        await asyncio.sleep(0.5)
    return round(time.monotonic() - begun, 1)


@asynccontextmanager
async def asking(callers: Callers, streams: int, tally: Tally) -> AsyncIterator[None]:
    """Keep `streams` requests in flight during the `with` block."""
    end = asyncio.Event()
    requests = asyncio.create_task(callers.keep_asking(streams, end, tally))
    try:
        yield
        end.set()
        await requests
    finally:
        requests.cancel()


async def up(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Scale up under load."""
    return await loaded(callers, callers.streams, lambda: running() == 3)


async def down(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Scale down under reduced load."""
    await until_three(callers)
    return await loaded(callers, 1, lambda: running() == 1)


async def until_three(callers: Callers) -> None:
    """Generate load until three servers are running."""
    if running() < 3:
        await loaded(callers, callers.streams, lambda: running() == 3)


async def loaded(callers: Callers, streams: int, claim: Callable[[], bool]) -> dict[str, Any]:
    """Keep `streams` requests in flight until `claim` is true, then make one more round of requests."""
    tally = Tally()
    after = Tally()
    async with asking(callers, streams, tally):
        took_s = await until(claim)
    await asyncio.gather(*(callers.say(seed, after) for seed in range(streams)))
    return {"seconds": took_s, "meanwhile": tally.record(), "then": after.record()}


async def struck(callers: Callers, strike: Callable[[], None]) -> dict[str, Any]:
    """Inject a fault once all streams but one have received audio, and make new requests immediately afterwards."""
    during = Tally()
    after = Tally()
    streams = [asyncio.create_task(callers.say(seed, during)) for seed in range(callers.streams)]
    while len(during.first_audio_s) < callers.streams - 1 and not all(stream.done() for stream in streams):
        await asyncio.sleep(0.05)
    strike()
    await asyncio.gather(*(callers.say(seed, after, SENTENCE) for seed in range(NEW)))
    await asyncio.gather(*streams)
    return {"during": during.record(), "new": after.record()}


async def server(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Kill the Triton server of one replica."""
    await until_three(callers)
    launcher = launchers(cluster).pop()

    def strike() -> None:
        next(process for process in launcher.children(recursive=True) if "tritonserver" in process.name()).kill()

    return await struck(callers, strike)


async def node(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Kill every process of a node that has a server but no gateway."""
    return await node_struck(callers, cluster, signal.SIGKILL)


async def silence(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Stop every process of a node as in `node`, without closing connections, like a loss of network or power."""
    return await node_struck(callers, cluster, signal.SIGSTOP)


async def node_struck(callers: Callers, cluster: Any, how: signal.Signals) -> dict[str, Any]:
    """Send a signal to all processes of a node, and replace the node afterwards."""
    await until_three(callers)
    there = (
        processes_on(cluster_node) for cluster_node in cluster.list_all_nodes() if cluster_node is not cluster.head_node
    )
    victims = next(processes for processes in there if has(processes, SERVER) and not has(processes, INGRESS))

    def signalled(how: signal.Signals) -> None:
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)

    try:
        return await struck(callers, lambda: signalled(how))
    finally:
        signalled(signal.SIGKILL)
        add_node(cluster, CPUS + 1)


async def update(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Deploy another version under load."""
    await until_three(callers)
    before = launchers(cluster)
    arguments = json.loads(cluster.arguments) | {"version": f"{time.time():.0f}"}
    target = serve.RunTarget(build(arguments), name=APP, route_prefix="/")
    begin = {"wait_for_ingress_deployment_creation": False, "wait_for_applications_running": False}

    def is_over() -> bool:
        return status()["status"] == "RUNNING" and not any(launcher.is_running() for launcher in before)

    tally = Tally()
    after = Tally()
    async with asking(callers, callers.streams, tally):
        await asyncio.to_thread(serve.run_many, [target], **begin)
        took_s = await until(is_over)
    await asyncio.gather(*(callers.say(seed, after) for seed in range(callers.streams)))
    return {"seconds": took_s, "servers": running(), "meanwhile": tally.record(), "then": after.record()}


async def affinity(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Run four conversations at a time; measure how often a turn reaches the server of the previous turn."""
    choose = leasing(lambda: serve.get_deployment_handle(SERVER, APP), FAILURES)
    met = Counter[bool]()

    async def conversation(key: str) -> None:
        last = ""
        for _ in range(5):
            async with choose(key, ()) as lease:
                await asyncio.sleep(0.2)
                if last:
                    met[lease.name == last] += 1
                last = lease.name

    for group in range(5):
        await asyncio.gather(*(conversation(f"conversation {group} {number}") for number in range(4)))
    return {"servers": running(), "turns": met.total(), "met": met[True], "rate": met[True] / met.total()}


PHASES = {phase.__name__: phase for phase in (up, affinity, server, update, node, silence, down)}


async def run(words: argparse.Namespace, cluster: Any) -> bool:
    """Run all phases in order; return True if all met their requirements."""
    fine = True
    async with aiohttp.ClientSession(f"http://127.0.0.1:{PORT}") as session:
        callers = Callers(session, words.streams)
        first = Tally()
        for name in ["references", *words.phases]:
            try:
                async with asyncio.timeout(words.limit):
                    record = await (PHASES[name](callers, cluster) if name in PHASES else references(callers, first))
            except Exception as error:
                record = {"failed": repr(error), "ray": status()}
            print(json.dumps({"phase": name, "load": psutil.getloadavg()[0], **record}), flush=True)
            fine = fine and is_fine(record)
    return fine


async def references(callers: Callers, tally: Tally) -> dict[str, Any]:
    """Record the audio of each text and seed, one request at a time."""
    for text, seeds in {TEXT: callers.streams, SENTENCE: NEW}.items():
        for seed in range(seeds):
            while (text, seed) not in callers.digests:
                await callers.say(seed, tally, text)
    return tally.record()


def is_fine(record: dict[str, Any]) -> bool:
    """Return True if a phase's record meets all requirements.

    No reply may be wrong, unanswered or unterminated. All new requests must succeed. 95 % of turns must reach the
    server of the previous turn.
    """
    tallies = [tally for tally in (record, *record.values()) if isinstance(tally, dict) and "wrong" in tally]
    ends = [end for tally in tallies for end in tally["errors"]]
    return (
        "failed" not in record
        and not any(tally["wrong"] for tally in tallies)
        and not any(end.startswith(("no answer", "ended without")) for end in ends)
        and ("new" not in record or record["new"]["right"] == NEW)
        and record.get("rate", 1.0) >= 0.95
    )


def main() -> int:
    """Start the nodes and the application, and run the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True, help="command that starts a server")
    parser.add_argument("--servers", type=int, default=1, help="minimum number of servers")
    parser.add_argument("--streams", type=int, default=6, help="number of concurrent streams")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for each phase")
    parser.add_argument("phases", nargs="+", choices=PHASES)
    words = parser.parse_args()
    cluster = Cluster()
    add_node(cluster, CPUS + 1, include_dashboard=False)  # capacity for a server and the gateway on each
    for _ in range(2):
        add_node(cluster, CPUS + 1)
    ray.init(address=cluster.address, log_to_driver=False)
    arguments: dict[str, Any] = {"command": words.command, "gpus": 0, "cpus": CPUS, "gateways": 1, "drain_s": 30}
    arguments |= {"min_servers": words.servers, "max_servers": 3, "streams": 2, "max_streams": 16, "free": 8}
    arguments |= {"upscale_s": 3, "downscale_s": 60}
    Settings(**arguments)
    cluster.arguments = json.dumps(arguments)
    try:
        serve.start(http_options={"port": PORT, "host": "127.0.0.1", "location": "HeadOnly"})
        begun = time.monotonic()
        serve.run(build(arguments), name=APP, route_prefix="/")
        print(json.dumps({"phase": "start", "seconds": round(time.monotonic() - begun, 1)}), flush=True)
        return 0 if asyncio.run(run(words, cluster)) else 1
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
