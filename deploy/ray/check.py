"""Three nodes of Ray in this machine, and what is done to them while they speak.

    PYTHONPATH=deploy/ray python deploy/ray/check.py --command ".venv/bin/stretto serve" PHASE...

In an environment of requirements/ray.txt. Phases, in the order that is given: up (1 → 3 servers under load), affinity
(turns of conversations that meet one server), server (kill -9 of Triton under streams), update (another version, under
load), node (kill -9 of a node with all that is on it), down (to one server). Each prints a line of JSON; the exit code
says whether all was as it must be.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

from stretto_ray.app import INGRESS, SERVER, Settings, build
from stretto_ray.leasing import leasing
from stretto_ray.seeded_callers import PATIENCE_S, Callers, Tally

APP, PORT, CPUS = "stretto", 18_103, 2
STREAMS = 6
START_S = 900.0


def running() -> list[Any]:
    """The servers that Ray knows to run."""
    application = serve.status().applications.get(APP)
    state = application.deployments[SERVER].replica_states if application else {}
    return [None] * int(state.get("RUNNING", 0))


async def until(claim: Callable[[], bool], seconds: float) -> float:
    """Seconds until it was true; TimeoutError after so many."""
    begun = time.monotonic()
    while not await asyncio.to_thread(claim):
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"not within {seconds:g} s")
        await asyncio.sleep(0.5)
    return round(time.monotonic() - begun, 1)


async def launchers() -> dict[str, int]:
    """The pids of the servers' launchers by replica, as leases tell them."""
    found: dict[str, int] = {}
    for _ in range(len(running())):
        responses = serve.get_deployment_handle(SERVER, APP).options(stream=True).lease.remote("", list(found))
        told = await anext(responses)
        responses.cancel()
        found[told["name"]] = told["pid"]
    return found


async def up(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Load comes, and servers come."""
    return await loaded(callers, STREAMS, lambda: len(running()) == 3)


async def down(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Load goes, and servers go, under what is left of it."""
    return await loaded(callers, 1, lambda: len(running()) == 1)


async def loaded(callers: Callers, streams: int, claim: Callable[[], bool]) -> dict[str, Any]:
    """So many streams until the claim is true, and a round of requests after that."""
    tally, after, end = Tally(), Tally(), asyncio.Event()
    asking = asyncio.create_task(callers.keep_asking(streams, end, tally))
    took_s = await until(claim, START_S)
    end.set()
    await asking
    await asyncio.gather(*(callers.say(seed, after) for seed in range(streams)))
    return {"seconds": took_s, "meanwhile": tally.record(), "then": after.record()}


async def struck(callers: Callers, strike: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    """Streams on all servers while one of them is struck, once all but one are heard; at once new requests."""
    during, after, sound = Tally(), Tally(), asyncio.Semaphore(0)
    streams = [asyncio.create_task(callers.say(seed, during, sound)) for seed in range(STREAMS)]
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(STREAMS - 1):
            await sound.acquire()
    await strike()
    await asyncio.gather(*(callers.say(seed, after) for seed in range(2)))
    await asyncio.gather(*streams)
    return {"during": during.record(), "new": after.record()}


async def server(callers: Callers, cluster: Any) -> dict[str, Any]:
    """kill -9 of the Triton server of one replica."""
    pid = next(iter((await launchers()).values()))

    async def strike() -> None:
        for process in psutil.Process(pid).children(recursive=True):
            if "tritonserver" in process.name():
                process.kill()
                return

    return await struck(callers, strike)


async def node(callers: Callers, cluster: Any) -> dict[str, Any]:
    """kill -9 of a node with a server and without the gateway, and of every process on it."""
    there = (processes_on(each) for each in cluster.list_all_nodes() if each is not cluster.head_node)
    victims = next(each for each in there if has(each, SERVER) and not has(each, INGRESS))

    async def strike() -> None:
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    return await struck(callers, strike)


def processes_on(node: Any) -> list[psutil.Process]:
    """The processes of a node of Ray, its raylet first; servers' launchers have sessions of their own, and parents."""
    raylet = next(found.process for name, all_of in node.all_processes.items() if "raylet" in name for found in all_of)
    return [psutil.Process(raylet.pid), *psutil.Process(raylet.pid).children(recursive=True)]


def has(processes: list[psutil.Process], deployment: str) -> bool:
    """Whether a replica of the deployment is among the processes, by the titles that Ray gives them."""
    return any(deployment in " ".join(process.cmdline()) for process in processes)


async def update(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Another version while there is load."""
    tally, end, before = Tally(), asyncio.Event(), set(await launchers())
    asking = asyncio.create_task(callers.keep_asking(2, end, tally))
    arguments = json.loads(cluster.arguments) | {"version": f"{time.time():.0f}"}
    await asyncio.to_thread(serve.run, build(arguments), name=APP, route_prefix="/", _blocking=False)
    await asyncio.sleep(2)
    names: set[str] = set()
    while not names or names & before:
        await asyncio.sleep(2)
        names = set(await launchers()) if running() else set()
    end.set()
    await asking
    return tally.record()


async def affinity(callers: Callers, cluster: Any) -> dict[str, Any]:
    """Turns of conversations, four at a time: how many meet the server of the turn before."""
    choose = leasing(lambda: serve.get_deployment_handle(SERVER, APP))
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
    return {"servers": len(running()), "turns": met.total(), "met": met[True], "rate": met[True] / met.total()}


PHASES = {"up": up, "affinity": affinity, "server": server, "update": update, "node": node, "down": down}


async def run(phases: list[str], cluster: Any) -> bool:
    """Every phase, one after the other; whether none had a wrong answer or one without an end."""
    fine = True
    async with aiohttp.ClientSession(f"http://127.0.0.1:{PORT}") as session:
        callers, first = Callers(session), Tally()
        for seed in range(STREAMS):
            while seed not in callers.known:
                await callers.say(seed, first)
        print(json.dumps({"phase": "references", **first.record()}), flush=True)
        for name in phases:
            record = await PHASES[name](callers, cluster)
            print(json.dumps({"phase": name, "load": psutil.getloadavg()[0], **record}), flush=True)
            fine = fine and "no answer" not in str(record) and "without an error" not in str(record)
            fine = (fine and '"wrong": 0' in json.dumps(record)) or name == "affinity"
    return fine


def add_node(cluster: Any, **arguments: Any) -> None:
    """A node more; tried again where its agents do not come up in the seconds that Ray gives them on any machine."""
    for attempt in range(5):
        try:
            cluster.add_node(**arguments)
            return
        except Exception as error:
            if attempt == 4 or "timed out during startup" not in str(error):
                raise


def main() -> int:
    """Start the nodes, the application, and the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True)
    parser.add_argument("--servers", type=int, default=1, help="at least")
    parser.add_argument("phases", nargs="+", choices=PHASES)
    words = parser.parse_args()
    cluster = Cluster()
    add_node(cluster, num_cpus=CPUS + 1, include_dashboard=False)
    for _ in range(2):
        add_node(cluster, num_cpus=CPUS + 1)  # whichever has the gateway has room for a server, too
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
        return 0 if asyncio.run(run(words.phases, cluster)) else 1
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
