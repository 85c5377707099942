"""Whose a request is."""

import json
from typing import Any

HOST = "stretto_host"  # the parameter by which the proxy says it


def host_of(request: Any) -> str:
    """The host that a request comes from, as the proxy has said; '' where it came by another way."""
    return str(json.loads(request.parameters()).get(HOST, ""))
