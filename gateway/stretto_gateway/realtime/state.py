"""State of realtime sessions in a running gateway."""

from dataclasses import dataclass, field

from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.audio_input import WindowQueue
from stretto_gateway.realtime.client_secrets import ClientSecrets
from stretto_gateway.realtime.end_of_turn import EndOfTurn
from stretto_gateway.routes import RouteSettings, RouteState


@dataclass(frozen=True)
class RealtimeOptions(RouteSettings):
    """Options of realtime sessions: an end-of-turn model that `read_model` has checked, or empty."""

    turn_model: bytes = field(default=b"", repr=False)


class RealtimeState(RouteState):
    """State that all realtime sessions share: turns of voice activity detection, end-of-turn model, client secrets."""

    def __init__(self, gateway: Gateway):
        model = gateway.config.of_route(RealtimeOptions).turn_model
        self.windows = WindowQueue()
        self.end_of_turn = EndOfTurn(model, gateway.metrics.note_turn) if model else None
        self.secrets = ClientSecrets()

    async def close(self) -> None:
        """End the threads of the end-of-turn model."""
        if self.end_of_turn is not None:
            self.end_of_turn.close()
