"""Restart of individual models through Triton's repository API; the server and other models keep running."""

import http.client
import json
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from stretto.serving.installation import LaunchError

FIRST_STEPS = {"preprocessor"}  # not needed once a request has received a response
Connect = Callable[[], http.client.HTTPConnection]


class ModelRestart:
    """Unloads models whose processes have ended, and reloads them with their dependents, without blocking.

    Attributes:
        models: Names of the models.
    """

    def __init__(self, models: Sequence[str], connect: Connect) -> None:
        self.models = tuple(models)
        self._connect = connect
        actions = [(action, model) for action in ("unload", "load") for model in models]
        self._steps = deque(f"models/{model}/{action}" for action, model in actions)
        self._steps.append("index")
        self._call: http.client.HTTPConnection | None = None
        self._step = ""

    @property
    def spares_answered(self) -> bool:
        """True if streams that have received a first response can continue without these models."""
        return set(self.models) <= FIRST_STEPS

    def is_done(self) -> bool:
        """Advance as far as possible without waiting, and return True once all models are ready.

        Raises LaunchError if Triton refuses a step or a model is not ready at the end.
        """
        while self._call is not None or self._steps:
            if self._call is None:
                self._step = self._steps.popleft()
                self._call = self._connect()
                self._call.request("POST", f"/v2/repository/{self._step}", "{}")
            if not select.select([self._call.sock], [], [], 0)[0]:
                return False
            answer = self._call.getresponse()
            body = answer.read()
            self.close()
            self._check(answer.status, body)
        return True

    def close(self) -> None:
        """Abandon the call in progress."""
        if self._call is not None:
            self._call.close()
            self._call = None

    def _check(self, status: int, body: bytes) -> None:
        if status != http.HTTPStatus.OK:
            raise LaunchError(f"{self._step}: {body.decode(errors='replace')[:500]}")
        if self._step == "index":
            models: list[dict[str, Any]] = json.loads(body)
            missing = [f"{model['name']} is {model.get('state')}" for model in models if model.get("state") != "READY"]
            if missing:
                raise LaunchError(", ".join(missing))
