"""Messages from the launcher to the proxy, and from the proxy to the launcher.

They are sent through pipes, because other users could read the key from command lines in `ps`.
"""

import json
from dataclasses import asdict, dataclass
from typing import TypeVar, get_args, get_origin, get_type_hints

# State messages after the config. While a model restarts, new requests are refused and requests in flight are ended:
# either all of them, or only those that have no response yet or share a stream with other requests.
READY = "ready"
UNREADY = "unready"
ENDING_ALL = "ending all"
ENDING_UNANSWERED = "ending unanswered"
ASLEEP = "asleep"  # Triton is being stopped, because it was idle; requests wait
WAKE_FAILED = "wake failed"  # Triton could not be started again; requests are refused until the next message
STOPPING = "stopping"  # last message; a launcher whose pipe closes without it has died

# Messages of the proxy, besides the names of unhealthy models, which have no blanks.
IDLE = "is idle"
WAKE = "wake up"

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on which the proxy listens. A configured port of 0 is replaced by the chosen free port.

    Attributes:
        http: None if Triton serves HTTP itself.
    """

    grpc: int
    metrics: int
    http: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Ports":
        """Parse the output of `to_json`; raise ValueError for other text, such as an error message."""
        return _parse(cls, text)


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Configuration of the proxy. A port of 0 selects a free port.

    Attributes:
        http_port: None if Triton serves HTTP itself.
        triton_grpc: Path of Triton's gRPC socket, without the colon and port that Triton appends.
        key: Secret whose holders may use all APIs.
        allowed: APIs in `CLOSED` that the user has opened to all clients.
        cleanup: Command to execute if the launcher has died; empty for none.
        cloning_models: Names of the ensembles for clients that clone voices.
        idle_s: Time without a request after which the server falls asleep; 0 for never.
    """

    address: str
    grpc_port: int
    metrics_port: int
    http_port: int | None
    triton_grpc: str
    triton_metrics: str
    disconnects: str
    key: str
    allowed: tuple[str, ...]
    max_request_bytes: int
    cleanup: tuple[str, ...] = ()
    cloning_models: tuple[str, ...] = ()
    idle_s: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ProxyConfig":
        """Parse the output of `to_json`; raise ValueError for other text."""
        return _parse(cls, text)


def _parse(message_class: type[Message], text: str) -> Message:
    """Parse a message. Errors name the invalid field but not its value, which may be the key."""
    record = json.loads(text)
    kinds = get_type_hints(message_class)
    if not isinstance(record, dict) or record.keys() != kinds.keys():
        got = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{message_class.__name__}: expected an object of {', '.join(kinds)}, got {got}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    for name, value in values.items():
        of = kinds[name]
        is_list = isinstance(value, tuple)
        types = {type(element) for element in (value if is_list else [value])}
        allowed = {str} if get_origin(of) is tuple else set(get_args(of) or [of])
        if is_list != (get_origin(of) is tuple) or not types <= allowed:
            raise ValueError(f"{message_class.__name__}.{name}: expected {of}, got {type(record[name]).__name__}")
    return message_class(**values)
