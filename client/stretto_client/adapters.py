"""Commands that load and unload a server's LoRA adapters, for programs that have the server's key."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import RequestRefused, ServerFailed, TimedOut, from_rpc, from_text
from stretto_client.speech_stream import strings

MODEL = "language_model"
COMMAND_S = 120.0  # for a gigabyte from a slow disk


async def run_adapter_command(
    client: InferenceServerClient, server: str, find_key: Callable[[], dict[str, str]], command: dict[str, str]
) -> list[str]:
    """Send a command about LoRA adapters; return the names of the server's adapters, or raise ClientError.

    Args:
        server: Address of the server (host:port), for error messages.
        find_key: Function that returns the header with the server's key; empty if it is unknown.
        command: `action` (`list`, `load` or `unload`), `name` and `path`.
    """
    key = find_key()
    if not key:
        raise RequestRefused(f"server: expected one on this host, started by the same user, got {server}")

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": strings(adapters=json.dumps(command))}

    answers: Any = client.stream_infer(requests(), headers=key)
    try:
        async with asyncio.timeout(COMMAND_S):
            answer, error = await anext(answers)
    except StopAsyncIteration:
        raise ServerFailed(f"{server}: the stream ended before the answer to a command") from None
    except TimeoutError:
        raise TimedOut(f"{server}: no answer to a command within {COMMAND_S:g} s") from None
    except grpc.RpcError as failure:
        raise from_rpc(failure, server) from failure
    finally:
        answers.cancel()
    if error is not None:
        raise from_text(error.message())
    names: list[str] = json.loads(answer.as_numpy("chunk").tobytes())
    return names
