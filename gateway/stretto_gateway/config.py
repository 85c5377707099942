"""Settings and limits of the gateway."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stretto_gateway.encoding import SYNTHETIC
from stretto_gateway.routes import RouteSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from stretto_client.manifest import FileSigner

MIB = 1 << 20
CACHE_AGE_S = 86_400.0
OfRoute = TypeVar("OfRoute", bound=RouteSettings)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per request, per caller and in total. Times are in seconds.

    Attributes:
        max_body_bytes: Maximum body size of a request with audio.
        max_json_bytes: Maximum body size of any other request.
        max_held_bytes: Maximum memory for all requests in progress, not counting the first 64 KiB of each.
        max_book_bytes: Maximum size of the text of a job, in UTF-8.
        max_jobs: Maximum number of stored jobs per key.
        max_active: Maximum number of concurrent utterances. A single caller may use half of them.
        max_waiting: Maximum number of requests that wait for a slot, half of which a single caller may use, and also
            of requests that wait for a full server. Further requests get status 429.
        max_verifying: Maximum number of files that wait to be verified, half of which a single caller may use.
        max_fetching: Maximum number of recordings that are fetched at the same time, half of which a single caller may
            use.
        full_s: Maximum time for which a request waits for a full server.
        later_full_s: The same for a later clause of a long text.
        max_voices: Maximum number of stored voices per key.
        max_pronunciations: Maximum number of entries in the pronunciation dictionary of a key.
        max_dictionary_bytes: Maximum size of such a dictionary as JSON, so that it fits into a request.
        keep_alive_s: Time for which a connection may be idle, longer than balancers keep theirs (60 s), because a
            request that they send while it is being closed is lost.
        stall_s: Time after which a client that neither reads nor writes is disconnected.
        drain_s: Maximum time for running responses to finish at shutdown, and for the output of a session at its end.
        first_s: Maximum time until the server begins to answer.
        max_sessions: Maximum number of open WebSockets and WebRTC calls.
        max_event_bytes: Maximum size of a WebSocket message, and of the events of a WebRTC call that wait.
        max_turn_s: Maximum duration of uncommitted audio in a realtime session.
        max_items: Maximum number of items in a realtime conversation.
        idle_s: Time without a message after which a session ends.
        resume_s: Time for which a full-duplex session outlasts a lost connection to the server.
        writing_s: Maximum time for a client to finish sending the text of a streamed utterance.
    """

    max_body_bytes: int = 32 * MIB
    max_json_bytes: int = MIB
    max_held_bytes: int = 256 * MIB
    max_input_chars: int = 100_000
    max_book_bytes: int = 2_000_000
    max_jobs: int = 20
    max_batch: int = 32
    max_batch_bytes: int = 64 * MIB
    max_active: int = 256
    max_waiting: int = 512
    max_verifying: int = 16
    max_fetching: int = 16
    full_s: float = 30.0
    later_full_s: float = 60.0
    max_voices: int = 100
    max_voice_bytes: int = 4 * MIB
    max_pronunciations: int = 1000
    max_dictionary_bytes: int = 40 * 1024
    max_connections: int = 1024
    keep_alive_s: int = 75
    stall_s: float = 30.0
    upload_s: float = 300.0
    drain_s: float = 30.0
    first_s: float = 30.0
    max_sessions: int = 256
    max_event_bytes: int = MIB
    max_turn_s: float = 60.0
    max_items: int = 128
    idle_s: float = 300.0
    session_s: float = 3600.0
    resume_s: float = 10.0
    writing_s: float = 600.0


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Settings of the speech cache.

    Attributes:
        max_age_s: Age in seconds after which an entry is not used.
        also: `seedless` to use it for requests without a seed, `voices` for those in the voice of a recording.
    """

    max_bytes: int
    max_age_s: float = CACHE_AGE_S
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of a gateway.

    Attributes:
        server: gRPC address of the server (host:port), unless there are several.
        keys: API keys; if empty, no key is required.
        admin_keys: Keys for the paths that change the servers; if empty, these are refused.
        voices: Folder for uploaded voices and pronunciation dictionaries; None to reject them.
        strict: True to reject request fields that have no effect, instead of ignoring them.
        model_aliases: Additional model names, each mapped to the family, or the name of the server, to which it refers.
        cors_origins: Origins whose browser pages may use the API (CORS); `*` for any.
        audio_tags: Tags of generated mp3, Opus and FLAC files.
        audio_hosts: Hosts from which recordings are fetched, as `AudioHosts` takes them.
        ceilings: Ceilings on the use of each key, as `Ceiling.from_text` parses them.
        named_servers: gRPC addresses of several servers, by the names of their models; empty for one server.
        replicas: gRPC addresses of equal servers, which serve the same model, instead of `server`; empty for one.
        check_with: Address of the recogniser for `check: "words"`; None to refuse this check.
        cache: Settings of the speech cache; None for no cache.
        signing_key: Key that signs receipts of speech; None for no receipts.
        file_signer: Signer of C2PA manifests with receipts, by the same key; None for no manifests.
        routes: Settings of routes. A route without settings has its defaults.
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
    audio_tags: Mapping[str, str] = field(default_factory=lambda: SYNTHETIC)
    audio_hosts: tuple[str, ...] = ()
    ceilings: tuple[str, ...] = ()
    named_servers: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[str, ...] = ()
    check_with: str | None = None
    cache: CacheSettings | None = None
    signing_key: "Ed25519PrivateKey | None" = field(default=None, repr=False)
    file_signer: "FileSigner | None" = None
    routes: tuple[RouteSettings, ...] = ()
    admin_keys: tuple[str, ...] = field(default=(), repr=False)

    @property
    def addresses(self) -> Mapping[str, str]:
        """Addresses of all servers by name; a single one has the empty name."""
        return self.named_servers or {"": self.server}

    def of_route(self, settings: type[OfRoute]) -> OfRoute:
        """Return a route's settings, which are of the class `settings`, or the defaults of this class."""
        return next((of_one for of_one in self.routes if isinstance(of_one, settings)), None) or settings()
