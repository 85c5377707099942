"""Commands that load and unload LoRA adapters, for clients that have the server's key."""

import json
from typing import Annotated, Literal, NotRequired, Protocol

import triton_python_backend_utils as pb_utils
from pydantic import Field
from typing_extensions import TypedDict

from stretto.errors import InvalidRequest
from stretto.records.json_record import JsonRecord
from stretto.triton_io.tensors import ADAPTERS


class Adapters(Protocol):
    """Adapters of the engine (`engine.adapter_table.AdapterTable`)."""

    @property
    def names(self) -> list[str]:
        """Names of the adapters in requests."""
        ...

    async def restore(self) -> list[str]:
        """Load the adapters of the previous run; return a message for each that cannot be loaded."""
        ...

    async def load(self, name: str, path: str) -> None: ...

    async def unload(self, name: str) -> None: ...


class AdapterCommand(TypedDict):
    """Command in the input `adapters`."""

    action: Annotated[Literal["list", "load", "unload"], Field(description="list, load or unload")]
    name: NotRequired[str]
    path: NotRequired[str]


COMMAND: JsonRecord[AdapterCommand] = JsonRecord(Annotated[AdapterCommand, Field(description="a JSON object")])


async def run_command(adapters: Adapters, command: bytes) -> bytes:
    """Run a command, and return the names of all adapters, as JSON.

    If it cannot be executed, raise InvalidRequest, or Overloaded if it can be executed later.
    """
    record = COMMAND.read(ADAPTERS.name, command)
    if record["action"] == "load":
        await adapters.load(_text(record, "name"), _text(record, "path"))
    elif record["action"] == "unload":
        await adapters.unload(_text(record, "name"))
    return json.dumps(adapters.names).encode()


def _text(record: AdapterCommand, field: Literal["name", "path"]) -> str:
    text = record.get(field)
    if text is None:
        raise InvalidRequest(f"{ADAPTERS.name}.{field}", "a text", "none")
    return text


async def restore_adapters(adapters: Adapters) -> None:
    """Load the adapters of the previous run; log those that cannot be loaded."""
    for message in await adapters.restore():
        pb_utils.Logger.log_warn(message)
