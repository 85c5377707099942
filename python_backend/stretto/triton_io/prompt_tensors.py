"""Authenticated tensors of a prompt, or of a part of streamed text, for the language model."""

from typing import Any

from stretto.records.prompt import Prompt
from stretto.records.text_part import TextPart
from stretto.triton_io.schema import FEATURES, PROMPT, ROWS
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import array_tensor, bytes_tensor, read_array, read_record

PART = "part"  # MAC name of a part, which differs from a prompt's


def write_prompt(prompt: Prompt, seal: Seal) -> list[Any]:
    """Return the tensors of `prompt`."""
    features, record = prompt.features, prompt.to_json()
    sealed = seal.close(PROMPT.name, record, prompt.rows, features)
    tensors = [array_tensor(ROWS, prompt.rows), bytes_tensor(PROMPT, sealed)]
    return tensors if features is None else [*tensors, array_tensor(FEATURES, features)]


def write_part(part: TextPart, seal: Seal) -> list[Any]:
    """Return the tensor of `part`."""
    return [bytes_tensor(PROMPT, seal.close(PART, part.to_json()))]


def read_prompt(request: Any, seal: Seal) -> Prompt | TextPart:
    """Return the prompt or text part of a request; raise InvalidRequest unless this server's preprocessor wrote it."""
    rows, features = read_array(request, ROWS), read_array(request, FEATURES)
    if rows is None:
        return TextPart.from_json(PROMPT.name, seal.open(PART, read_record(request, PROMPT)))
    rows, features = rows.copy(), None if features is None else features.copy()
    record = seal.open(PROMPT.name, read_record(request, PROMPT), rows, features)
    return Prompt.from_json(PROMPT.name, record, rows, features)
