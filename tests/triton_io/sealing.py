"""Authenticated records between steps of the ensemble, with a key known to tests."""

from collections.abc import Callable
from typing import Any

import numpy as np

from stretto.records.chunk import Envelope
from stretto.records.prompt import Prompt, TextPart
from stretto.triton_io.callers import Caller
from stretto.triton_io.chunk_sender import Responses, ResponseThread
from stretto.triton_io.seal import TAG, Seal
from stretto.triton_io.tensors import write_part, write_prompt
from tests.fakes_triton import InferenceResponse, Request, ResponseSender

SEAL = Seal(bytes(range(32)))


def chunk_inputs(envelope: Envelope, codes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the decoder's inputs as the language model writes them."""
    sealed = SEAL.close("chunk", envelope.to_bytes(), codes)
    inputs = {"chunk": np.frombuffer(sealed, np.uint8)}
    return inputs if codes is None else inputs | {"codes": codes}


def prompt_inputs(prompt: Prompt) -> dict[str, np.ndarray]:
    """Return the language model's inputs as the preprocessor writes them."""
    return {tensor.name(): tensor.as_numpy() for tensor in write_prompt(prompt, SEAL)}


def part_inputs(part: TextPart) -> dict[str, np.ndarray]:
    """Return the language model's inputs for a part of a text."""
    return {tensor.name(): tensor.as_numpy() for tensor in write_part(part, SEAL)}


def envelope_in(response: InferenceResponse) -> Envelope:
    """Return the content of a language model's response, without checking its MAC."""
    return Envelope.from_bytes("chunk", response.array("chunk").tobytes()[TAG:])


class NoThread(ResponseThread):
    """Executor that calls functions immediately."""

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)


def responses_to(sender: ResponseSender) -> Responses:
    return Responses(Caller(Request({}, sender)), NoThread(), SEAL)
