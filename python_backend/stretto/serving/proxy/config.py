"""What the launcher tells the proxy, over its standard input, so that no other user reads the key in `ps`.

The proxy answers with its ports, and later with a line for each model that Triton has given up.
"""

import json
from dataclasses import asdict, dataclass

# The lines that follow, as often as this changes. While a model is started again, no request is let through; those in
# flight are ended, or those of them that have had no answer yet, or are on a stream of several.
READY, UNREADY, ENDING_ALL, ENDING_UNANSWERED = "ready", "unready", "ending all", "ending unanswered"
STOPPING = "stopping"  # the last line; a launcher whose pipe ends without it has died

# In the environment of a front-end process: the descriptor to which its event loop writes a byte every BEAT_S seconds.
BEATS, BEAT_S = "STRETTO_BEATS", 1.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the proxy listens: the ports of its config, and in the place of 0 one that was free."""

    grpc: int
    metrics: int
    http: int | None = None

    def to_json(self) -> str:
        """In one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Ports":
        """The inverse of `to_json`; ValueError for what says why there are none."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Where it listens, whom it lets in, and Triton's sockets. Without `http_port`, that is Triton's own.

    A port 0 is any that is free. To `triton_grpc` Triton adds a colon and the gRPC port that it is.

    departures: the file in which the models are told of clients that have left. cleanup: the command that removes what
    is left of a launcher that has died.
    """

    address: str
    grpc_port: int
    metrics_port: int
    http_port: int | None
    triton_grpc: str
    triton_metrics: str
    departures: str
    key: str
    allowed: tuple[str, ...]
    max_request_bytes: int
    cleanup: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The config in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ProxyConfig":
        """The inverse of `to_json`."""
        record = json.loads(text)
        return cls(**record | {name: tuple(record[name]) for name in ("allowed", "cleanup")})
