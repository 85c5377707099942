"""A prompt, or a part of a text, as tensors from the preprocessor to the language model, sealed."""

from typing import Any

from stretto.records.prompt import Prompt
from stretto.records.text_part import TextPart
from stretto.triton_io.schema import FEATURES, PROMPT, ROWS
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import array_tensor, bytes_tensor, read_array, read_record

PART = "part"  # what the seal of a part says that it is: a prompt's will not do


def write_prompt(prompt: Prompt, seal: Seal) -> list[Any]:
    """The tensors of `prompt`."""
    features, record = prompt.features, prompt.to_json()
    sealed = seal.close(PROMPT.name, record, prompt.rows, features)
    tensors = [array_tensor(ROWS, prompt.rows), bytes_tensor(PROMPT, sealed)]
    return tensors if features is None else [*tensors, array_tensor(FEATURES, features)]


def write_part(part: TextPart, seal: Seal) -> list[Any]:
    """The tensor of `part`."""
    return [bytes_tensor(PROMPT, seal.close(PART, part.to_json()))]


def read_prompt(request: Any, seal: Seal) -> Prompt | TextPart:
    """The prompt of a request, or the part of a text; InvalidRequest unless this server's preprocessor wrote it."""
    rows, features = read_array(request, ROWS), read_array(request, FEATURES)
    if rows is None:
        return TextPart.from_json(PROMPT.name, seal.open(PART, read_record(request, PROMPT)))
    rows, features = rows.copy(), None if features is None else features.copy()
    record = seal.open(PROMPT.name, read_record(request, PROMPT), rows, features)
    return Prompt.from_json(PROMPT.name, record, rows, features)
