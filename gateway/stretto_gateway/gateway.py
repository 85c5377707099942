"""State shared by all endpoints: clients, admission, catalogues, metrics."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Self, TypeVar

from stretto_client import SpeechClient, Timeouts
from stretto_gateway.admission import CALLER, Admission, OpenSessions
from stretto_gateway.answers import SERVER, ApiError
from stretto_gateway.audio_hosts import AudioHosts
from stretto_gateway.config import GatewayConfig
from stretto_gateway.guard import Keys
from stretto_gateway.metrics import Metrics, open_spans
from stretto_gateway.model_server import Can, ModelServer, Servers
from stretto_gateway.outcomes import Outcomes
from stretto_gateway.pronunciation_store import PronunciationStore
from stretto_gateway.replicas import Replicas
from stretto_gateway.routed import RoutedClient
from stretto_gateway.routes import RouteState, installed_routes
from stretto_gateway.speech_cache import SpeechCache
from stretto_gateway.usage import Ceiling
from stretto_gateway.voice_store import VoiceStore

if TYPE_CHECKING:
    from stretto_gateway.receipt_store import ReceiptStore

OfRoute = TypeVar("OfRoute", bound=RouteState)


class Gateway:
    """State of a running gateway for the requests to one of its servers.

    Each server has its own client, queue, catalogue and slots, and its name in metrics. All else is shared. A gateway
    must be created and closed inside the event loop.
    """

    def __init__(self, config: GatewayConfig, client: RoutedClient | None = None):
        self.config = config
        self.limits = config.limits
        self.strict = config.strict
        self.audio_tags = config.audio_tags
        ceilings = [Ceiling.from_text(text) for text in config.ceilings]
        self.metrics = Metrics(lambda: self.catalogue.label, open_spans(), Keys(config.keys).owners, ceilings)
        self._replicas: Replicas | None = None
        usual = Timeouts()
        later_s = config.limits.first_s - usual.first_s
        timeouts = Timeouts(config.limits.first_s, total_s=usual.total_s + max(later_s, 0.0))
        if client is None and config.replicas:
            self._replicas = Replicas(config.replicas, self.metrics.registry)
            client = RoutedClient(self._replicas.choose, CALLER.get, timeouts)
        served: dict[str, SpeechClient | RoutedClient] = {} if client is None else {"": client}
        for name, address in config.addresses.items() if client is None else ():
            served[name] = SpeechClient(address, timeouts, caller=CALLER.get)
        model_servers = [
            ModelServer(name, server_address, config, self.metrics.waited) for name, server_address in served.items()
        ]
        self.servers = Servers(model_servers, dict(config.model_aliases))
        self.verifying = Admission(1, config.limits.max_verifying, lambda _: None)
        self.sessions = OpenSessions(config.limits)
        self.outcomes = Outcomes()
        self.receipts: ReceiptStore | None = None
        if config.signing_key is not None:
            from stretto_gateway import receipt_store  # imports cryptography

            self.receipts = receipt_store.ReceiptStore(config.signing_key, config.file_signer)
        self.metrics.watch(self.servers, self.sessions)
        self.audio_hosts = AudioHosts(config.audio_hosts, config.limits)
        self.cache: SpeechCache | None = None
        if config.cache is not None:
            self.cache = SpeechCache(config.cache, bool(config.keys), self.metrics.registry)
        self.voices: VoiceStore | None = None
        self.pronunciations: PronunciationStore | None = None
        if config.voices is not None:
            self.voices = VoiceStore(config.voices, config.limits.max_voices)
            sizes = config.limits.max_pronunciations, config.limits.max_dictionary_bytes
            self.pronunciations = PronunciationStore(config.voices, *sizes)
        self.changing_adapters = asyncio.Lock()
        states = [route.make_state(self) for route in installed_routes()]
        self._states = {type(state): state for state in states if state is not None}
        self._use(model_servers[0])
        self._by_name = {model_servers[0].name: self}
        self._by_name |= {server.name: self._with(server) for server in model_servers[1:]}  # in place, for the copies

    def of_route(self, state: type[OfRoute]) -> OfRoute:
        """Return the route state of the class `state`."""
        only = self._states[state]
        assert isinstance(only, state)
        return only

    @property
    def takes_calls(self) -> bool:
        """True if browsers can start calls with the model over WebRTC."""
        return any(state.takes_calls for state in self._states.values())

    def _use(self, server: ModelServer) -> None:
        self.client = server.client
        self.queue = server.queue
        self.catalogue = server.catalogue
        self.admission = server.admission
        self._server = server

    def _with(self, server: ModelServer) -> Self:
        """Return a copy of this gateway's state for another server."""
        other = copy(self)
        other._use(server)
        other.metrics = self.metrics.labelled(lambda: server.catalogue.label)
        return other

    @property
    def each_client(self) -> tuple[SpeechClient, ...]:
        """A client of each server of the model; raises ApiError if the servers are not known by address."""
        if self._replicas is not None:
            return self._replicas.clients
        if isinstance(self.client, RoutedClient):
            raise ApiError(400, "model: this gateway does not know the addresses of all servers", code="unsupported")
        return (self.client,)

    @property
    def listener(self) -> "Gateway":
        """Gateway state for the server that transcribes the user's turns, which may be a different server."""
        return self._by_name[self.servers.transcriber(self._server).name]

    async def for_model(self, name: str, *abilities: Can) -> "Gateway":
        """Return the state for the server that a request selects, with the arguments and errors of `Servers.choose`."""
        return self._by_name[(await self.servers.choose(name, *abilities)).name]

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot for the caller in the `with` block; raise ApiError 429 at a ceiling or for a full queue."""
        use = self.metrics.usage.current
        use.check()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.admission.slot())
            except ApiError:
                use.refuse()
                raise
            use.check()  # others may have reached the ceiling while this one has waited
            use.add("requests", 1)
            SERVER.set(self._server.name)
            yield

    async def start(self) -> None:
        """Start the background work of the routes (`RouteState.start`)."""
        for state in self._states.values():
            await state.start()

    async def close(self) -> None:
        """Close the routes and the clients, and export the remaining traces."""
        for state in reversed(self._states.values()):  # calls use the state of realtime sessions while they end
            await state.close()
        await self.servers.close()
        if self._replicas is not None:
            await self._replicas.close()
        if self.metrics.spans is not None:
            await asyncio.to_thread(self.metrics.spans.close)
