"""What the launcher tells the proxy, over its standard input, so that no other user reads the key in `ps`."""

import json
from dataclasses import asdict, dataclass

# The lines that follow, as often as this changes. While a model is started again, no request is let through; those in
# flight are ended, or those of them that have had no answer yet.
READY, UNREADY, ENDING_ALL, ENDING_UNANSWERED = "ready", "unready", "ending all", "ending unanswered"
LISTENING = "listening"  # the line with which the proxy says that it does


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Where it listens, whom it lets in, and Triton's sockets. Without `http_port`, that is Triton's own."""

    address: str
    grpc_port: int
    metrics_port: int
    http_port: int | None
    triton_grpc: str
    triton_metrics: str
    key: str
    allowed: tuple[str, ...]
    max_request_bytes: int

    def to_json(self) -> str:
        """The config in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ProxyConfig":
        """The inverse of `to_json`."""
        record = json.loads(text)
        return cls(**record | {"allowed": tuple(record["allowed"])})
