"""Servers of a gateway, which requests select by the name of a model."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain

from stretto_client import ClientError, ModelProfile, SpeechClient
from stretto_gateway.admission import Admission
from stretto_gateway.answers import ApiError, shown
from stretto_gateway.catalogue import Catalogue, is_alias, transcribes
from stretto_gateway.config import GatewayConfig
from stretto_gateway.routed import RoutedClient
from stretto_gateway.server_queue import ServerQueue

CHECK_S = 5.0  # time between two checks of a server
ANSWER_S = 5.0  # maximum duration of a check
READY_S = 5.0
IDENTITY = ("model", "revision", "configuration", "weights", "numerics")  # fields of a server's report about its model
FAILED_CHECKS = 3  # consecutive failed checks after which a server is down; one that is only busy answers earlier

Can = Callable[[ModelProfile], bool]


class ModelServer:
    """Server of one model, with the slots and the queue of its requests.

    Args:
        name: Name of its model in requests; empty for the only server, which serves all of them.

    Attributes:
        is_up: True if one of the last FAILED_CHECKS checks has succeeded. An unnamed server is not checked.
    """

    def __init__(
        self,
        name: str,
        client: SpeechClient | RoutedClient,
        config: GatewayConfig,
        waited: Callable[[float], None],
    ):
        self.name = name
        self.client = client
        self.is_up = not name
        self.queue = ServerQueue(config.limits)
        self.client.tries = self.queue.later_tries
        self.catalogue = Catalogue(client, config.model_aliases, name, lists_adapters=bool(config.admin_keys))
        self.admission = Admission(config.limits.max_active, config.limits.max_waiting, waited)
        self._is_checked = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None

    def start_checks(self) -> None:
        """Check the server from now on, in the background."""
        self._checking = asyncio.get_running_loop().create_task(self._check_always())

    async def checked(self) -> None:
        """Wait until the server has been checked once."""
        await self._is_checked.wait()

    async def close(self) -> None:
        """End the checks, and close the client."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait([self._checking])
        await self.client.close()

    async def _check_always(self) -> None:
        num_failed = FAILED_CHECKS
        while True:
            num_failed = 0 if await self._check() else num_failed + 1
            self.is_up = num_failed < FAILED_CHECKS
            self._is_checked.set()
            await asyncio.sleep(CHECK_S)

    async def _check(self) -> bool:
        """Return True if the server accepts requests. Refresh its profile, because its model may have been replaced."""
        with suppress(ApiError, ClientError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                if await self.client.ready():
                    await self.catalogue.refresh()
                    return True
        return False


class Servers:
    """All servers of a gateway.

    Args:
        servers: The servers: one without a name, or any number of named ones.
        aliases: Additional model names, each mapped to the name of a server or to a family.
    """

    def __init__(self, servers: Sequence[ModelServer], aliases: dict[str, str]):
        self.all = tuple(servers)
        self._aliases = aliases
        self.are_named = bool(self.all[0].name)
        if self.are_named:
            for server in self.all:
                server.start_checks()

    async def close(self) -> None:
        """Close the clients of all servers."""
        await asyncio.gather(*(server.close() for server in self.all))

    async def up(self) -> list[ModelServer]:
        """Return the servers that accept requests; raise ApiError 503 if there is none."""
        await self._checked()
        servers = [server for server in self.all if server.is_up]
        if not servers:
            raise _down(self.all)
        return servers

    async def choose(self, name: str, *abilities: Can) -> ModelServer:
        """Return the server that a request selects; raise ApiError 404 for an unknown name, 503 if it is down.

        The name of a server, of a family or of an alias selects that server. An empty name, or one of OpenAI's, selects
        the first server that can do the request, and that is up.

        Args:
            abilities: Functions that return True for the profile of a model that can do the request. If the first
                function is true for no model, the next one is used, and so on. Without one, every model can do the
                request.
        """
        if not self.are_named:
            return self.all[0]
        await self._checked()
        server = self._named(name)
        if server is None:
            if name and not is_alias(name):
                names = ", ".join(repr(other.name) for other in self.all)
                raise ApiError(404, f"model: expected one of {names}, got {shown(name)}", "model", "model_not_found")
            server = self._first(abilities)
        if not server.is_up:
            raise _down([server])
        return server

    def transcriber(self, server: ModelServer) -> ModelServer:
        """Return the server that transcribes conversations with `server`: itself, or else the first one that can."""
        profiles = [(other, other.catalogue.known) for other in self.all]
        able = [other for other, profile in profiles if profile is not None and transcribes(profile)]
        return server if server in able else next((other for other in able if other.is_up), server)

    async def _checked(self) -> None:
        await asyncio.gather(*(server.checked() for server in self.all if self.are_named))

    def _named(self, name: str) -> ModelServer | None:
        target = self._aliases.get(name, name)
        by_name = (server for server in self.all if server.name == target)
        by_family = (server for server in self.all if server.catalogue.family == target)
        by_adapter = (server for server in self.all if name in server.catalogue.adapters)
        return next(chain(by_name, by_family, by_adapter), None) if target else None

    def _first(self, abilities: Sequence[Can]) -> ModelServer:
        profiles = [(server, server.catalogue.known) for server in self.all]
        for can in abilities or (lambda _: True,):
            able = [server for server, profile in profiles if profile is not None and can(profile)]
            if able:
                return next((server for server in able if server.is_up), able[0])
        unknown = [server for server, profile in profiles if profile is None]
        if unknown:  # one of them may be able to do the request
            raise _down(unknown)
        return next((server for server in self.all if server.is_up), self.all[0])  # this server refuses the request


async def served_model(client: SpeechClient | RoutedClient) -> dict[str, str]:
    """Return the server's report about its model (IDENTITY); empty for servers without one."""
    reported = None
    with suppress(ClientError, TimeoutError, ValueError):
        async with asyncio.timeout(READY_S):
            reported = json.loads(await client.server_name())
    record = reported if isinstance(reported, dict) else {}
    return {name: record[name] for name in IDENTITY if isinstance(record.get(name), str)}


def _down(servers: Sequence[ModelServer]) -> ApiError:
    names = ", ".join(repr(server.name) for server in servers)
    many = f"the server {names} accepts" if len(servers) == 1 else f"the servers {names} accept"
    return ApiError(503, f"{many} no requests now; try again", "model", "unavailable")
