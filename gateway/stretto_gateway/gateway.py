"""What all endpoints share: the way to the server, places, models, figures."""

import asyncio

from stretto_client import SpeechClient, Timeouts
from stretto_gateway.admission import Admission
from stretto_gateway.catalogue import Catalogue
from stretto_gateway.config import GatewayConfig
from stretto_gateway.metrics import Metrics
from stretto_gateway.realtime.client_secrets import ClientSecrets
from stretto_gateway.routed import RoutedClient
from stretto_gateway.sessions import Sessions
from stretto_gateway.spans import open_spans
from stretto_gateway.voice_store import VoiceStore


class Gateway:
    """Made once, inside the event loop; closed with it. client: of several servers, instead of that of the config."""

    def __init__(self, config: GatewayConfig, client: RoutedClient | None = None):
        self.limits, self.strict = config.limits, config.strict
        self.client = client or SpeechClient(config.server, Timeouts())
        self.catalogue = Catalogue(self.client, config.model_aliases)
        self.metrics = Metrics(lambda: self.catalogue.family, open_spans())
        self.admission = Admission(config.limits.max_active, config.limits.max_waiting, self.metrics.waited)
        self.sessions = Sessions(config.limits)
        self.secrets = ClientSecrets()
        self.metrics.watch(self.admission, self.sessions)
        self.voices = None if config.voices is None else VoiceStore(config.voices, config.limits.max_voices)

    async def close(self) -> None:
        """Leave the server, and send the traces that are left."""
        await self.client.close()
        if self.metrics.spans is not None:
            await asyncio.to_thread(self.metrics.spans.close)
