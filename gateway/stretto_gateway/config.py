"""What the gateway was asked to do, and the limits that it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller, and all together, may ask for.

    max_body_bytes: of a request with audio; max_json_bytes: of one without. max_held_bytes: of all that are not
    answered yet, together, beyond the first 64 KiB of each. max_batch_bytes: of the audio of a batch. max_active,
    max_waiting: utterances that are made at once, and requests that wait for one to end; what comes on top is told to
    come again; a caller alone has half of both. max_voices: that a key may keep; max_voice_bytes: of the recording of
    each. stall_s: how long a reader may take nothing, or a sender send nothing, before it is left; upload_s: in which a
    body has to come. max_sessions: WebSockets at once; max_event_bytes: of one message; max_turn_s: of audio that waits
    for a commit; max_items: of a conversation; idle_s, session_s: how long one may be silent, and last. writing_s: in
    which the text of an utterance has to come that is spoken meanwhile.
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
        server: the gRPC address (host:port).
        address: IP address to listen at.
        port: TCP port to listen at.
        keys: API keys; anybody may ask if there are none.
        limits: bounds on requests and connections.
        voices: folder of the voices that callers bring; None if they may not bring any.
        strict: refuse request fields that are not honoured, instead of ignoring them.
        model_aliases: further names of models, and the family that each of them means.
        cors_origins: origins of pages in browsers that may ask (CORS); `*` is any.
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
