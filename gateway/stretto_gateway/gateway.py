"""State shared by all endpoints: client, admission, catalogue, metrics."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from stretto_client import SpeechClient, Timeouts
from stretto_gateway.admission import CALLER, Admission, Sessions
from stretto_gateway.answers import ApiError
from stretto_gateway.audio_hosts import AudioHosts
from stretto_gateway.catalogue import Catalogue
from stretto_gateway.config import GatewayConfig
from stretto_gateway.guard import Keys
from stretto_gateway.metrics import Metrics, open_spans
from stretto_gateway.outcomes import Outcomes
from stretto_gateway.pronunciation_store import PronunciationStore
from stretto_gateway.realtime.audio_input import WindowQueue
from stretto_gateway.realtime.client_secrets import ClientSecrets
from stretto_gateway.realtime.end_of_turn import EndOfTurn
from stretto_gateway.routed import RoutedClient
from stretto_gateway.server_queue import ServerQueue
from stretto_gateway.usage import Ceiling
from stretto_gateway.voice_store import VoiceStore
from stretto_gateway.webrtc.network import Network


class Gateway:
    """State of a running gateway. It must be created and closed inside the event loop.

    Args:
        config: Settings.
        client: Client for several servers; None to use the configured server.
    """

    def __init__(self, config: GatewayConfig, client: RoutedClient | None = None):
        self.limits, self.strict, self.audio_tags = config.limits, config.strict, config.audio_tags
        self.call_webhook, self.twilio_token = config.call_webhook, config.twilio_token
        self.client = client or SpeechClient(config.server, Timeouts(), caller=CALLER.get)
        self.queue = ServerQueue(config.limits)
        self.client.tries = self.queue.later_tries
        self.catalogue = Catalogue(self.client, config.model_aliases)
        ceilings = [Ceiling.from_text(text) for text in config.ceilings]
        self.metrics = Metrics(lambda: self.catalogue.family, open_spans(), Keys(config.keys).owners, ceilings)
        self.admission = Admission(config.limits.max_active, config.limits.max_waiting, self.metrics.waited)
        self.verifying = Admission(1, config.limits.max_verifying, lambda _: None)
        self.sessions = Sessions(config.limits)
        self.windows = WindowQueue()
        model = config.turn_model
        self.end_of_turn = EndOfTurn(model, self.metrics.note_turn) if model else None
        self.secrets = ClientSecrets()
        self.outcomes = Outcomes()
        self.metrics.watch(self.admission, self.queue, self.sessions)
        self.audio_hosts = AudioHosts(config.audio_hosts, config.limits)
        self.voices: VoiceStore | None = None
        self.pronunciations: PronunciationStore | None = None
        if config.voices is not None:
            self.voices = VoiceStore(config.voices, config.limits.max_voices)
            sizes = config.limits.max_pronunciations, config.limits.max_dictionary_bytes
            self.pronunciations = PronunciationStore(config.voices, *sizes)
        self.network = Network.from_texts(config.webrtc_addresses, config.webrtc_ports)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot for an utterance of the caller during the `with` block.

        Raises:
            ApiError: 429 if the caller's key has reached a ceiling, or if the queue is full.
        """
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
            yield

    async def close(self) -> None:
        """Close the client, and export the remaining traces."""
        await self.client.close()
        if self.end_of_turn is not None:
            self.end_of_turn.close()
        if self.metrics.spans is not None:
            await asyncio.to_thread(self.metrics.spans.close)
