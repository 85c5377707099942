"""Settings of the gateway, and its limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per request, per caller and in total.

    Attributes:
        max_body_bytes: Body of a request with audio.
        max_json_bytes: Body of any other request.
        max_held_bytes: All requests in progress together, beyond the first 64 KiB of each.
        max_input_chars: Characters of a text.
        max_batch: Items of a batch.
        max_batch_bytes: Audio of a batch.
        max_active: Concurrent utterances. One caller alone may use half.
        max_waiting: Queued requests; further ones get status 429. One caller alone may use half.
        max_voices: Stored voices per key.
        max_voice_bytes: Recording of a stored voice.
        max_connections: Open connections.
        stall_s: Time in which a client may read nothing, or send nothing, before it is disconnected.
        upload_s: Time for a whole body.
        drain_s: Time for running responses at shutdown.
        max_sessions: Open WebSockets.
        max_event_bytes: One WebSocket message.
        max_turn_s: Uncommitted audio of a realtime session.
        max_items: Items of a realtime conversation.
        idle_s: Time without a message after which a session ends.
        session_s: Duration of a session.
        writing_s: Time for the text of an utterance that is spoken while it is written.
    """

    max_body_bytes: int = 32 * MIB
    max_json_bytes: int = MIB
    max_held_bytes: int = 256 * MIB
    max_input_chars: int = 100_000
    max_batch: int = 32
    max_batch_bytes: int = 64 * MIB
    max_active: int = 256
    max_waiting: int = 512
    max_voices: int = 100
    max_voice_bytes: int = 4 * MIB
    max_connections: int = 1024
    stall_s: float = 30.0
    upload_s: float = 300.0
    drain_s: float = 30.0
    max_sessions: int = 256
    max_event_bytes: int = MIB
    max_turn_s: float = 60.0
    max_items: int = 128
    idle_s: float = 300.0
    session_s: float = 3600.0
    writing_s: float = 600.0


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of one gateway.

    Attributes:
        server: gRPC address of the server (host:port).
        address: IP address to listen at.
        port: TCP port to listen at.
        keys: API keys; if empty, no key is needed.
        limits: Limits on requests and connections.
        voices: Folder of uploaded voices; None to refuse uploads.
        strict: Refuse request fields that are not honoured, instead of ignoring them.
        model_aliases: Additional model names, with the family of each.
        cors_origins: Origins whose browser pages may use the API (CORS); `*` is any.
    """

    server: str
    address: str = "127.0.0.1"
    port: int = 8003
    keys: tuple[str, ...] = field(default=(), repr=False)
    limits: Limits = field(default_factory=Limits)
    voices: Path | None = None
    strict: bool = False
    model_aliases: Mapping[str, str] = field(default_factory=dict)
    cors_origins: tuple[str, ...] = ()
