"""Client secrets: short-lived keys that can only open realtime sessions, with their own settings."""

import hashlib
import heapq
import json
import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from stretto_contract.limits import FairLimit
from stretto_gateway.answers import ApiError
from stretto_gateway.fields import Body
from stretto_gateway.realtime.settings import Settings

PREFIX = "ek_"  # OpenAI's prefix for ephemeral keys
NUM_BYTES = 32  # random bytes in a secret
SECRET_BYTES = 2048  # memory of a secret
CHAR_BYTES = 4  # memory of each character of its settings
MAX_BYTES = 16 << 20  # limit on all secrets together
Lifetime = Annotated[int, Field(ge=10, le=7200)]  # seconds, as at OpenAI


class ExpiresAfter(Body):
    """Lifetime of a client secret."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Lifetime = 600


class SecretRequest(Body):
    """Request for a client secret. `session`: settings of the sessions, as in `session.update`."""

    expires_after: ExpiresAfter = Field(default_factory=ExpiresAfter)
    session: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """Short-lived key that opens realtime sessions with given settings.

    Attributes:
        owner: Owner of the API key that created the secret, and of the sessions.
        expires_s: Expiry, in seconds of the monotonic clock.
    """

    owner: str
    settings: Settings
    expires_s: float
    num_bytes: int


class ClientSecrets:
    """Client secrets in memory, keyed by digest, until they expire. Owners share the memory fairly (`FairLimit`)."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self._secrets: dict[bytes, ClientSecret] = {}
        self._expiries: list[tuple[float, bytes]] = []
        self._bytes = FairLimit(max_bytes)

    def __len__(self) -> int:
        self._forget_expired()
        return len(self._secrets)

    def add(self, owner: str, settings: Settings, lifetime_s: int) -> tuple[str, int]:
        """Return a new secret and its expiry in seconds since the epoch; raise ApiError 429 if there are too many."""
        self._forget_expired()
        num_bytes = SECRET_BYTES + CHAR_BYTES * len(json.dumps(settings.model_dump()))
        if not self._bytes.has_free(owner, num_bytes):
            message = f"{len(self._secrets)} client secrets have not expired yet; try again"
            raise ApiError(429, message, code="rate_limit_exceeded")
        value = PREFIX + secrets.token_urlsafe(NUM_BYTES)
        digest = hashlib.sha256(value.encode()).digest()
        expires_s = time.monotonic() + lifetime_s
        self._secrets[digest] = ClientSecret(owner, settings, expires_s, num_bytes)
        heapq.heappush(self._expiries, (expires_s, digest))
        self._bytes.acquire(owner, num_bytes)
        return value, int(time.time()) + lifetime_s

    def find(self, value: str) -> ClientSecret | None:
        """Return the secret with value `value`, or None if there is none or it has expired."""
        self._forget_expired()
        return self._secrets.get(hashlib.sha256(value.encode()).digest())

    def _forget_expired(self) -> None:
        now_s = time.monotonic()
        while self._expiries and self._expiries[0][0] <= now_s:
            secret = self._secrets.pop(heapq.heappop(self._expiries)[1])
            self._bytes.release(secret.owner, secret.num_bytes)
