"""A prompt as the tensors in which it goes from the preprocessor to the language model, sealed."""

from typing import Any

from stretto.records.prompt import Prompt
from stretto.triton_io.schema import FEATURES, PROMPT, ROWS
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import array_tensor, bytes_tensor, read_array, read_record, required_array


def write_prompt(prompt: Prompt, seal: Seal) -> list[Any]:
    """The tensors of `prompt`."""
    features, record = prompt.features, prompt.to_json()
    sealed = seal.close(PROMPT.name, record, prompt.rows, features)
    tensors = [array_tensor(ROWS, prompt.rows), bytes_tensor(PROMPT, sealed)]
    return tensors if features is None else [*tensors, array_tensor(FEATURES, features)]


def read_prompt(request: Any, seal: Seal) -> Prompt:
    """The prompt of a request; InvalidRequest unless this server's preprocessor has written it."""
    rows, features = required_array(request, ROWS).copy(), read_array(request, FEATURES)
    features = None if features is None else features.copy()
    record = seal.open(PROMPT.name, read_record(request, PROMPT), rows, features)
    return Prompt.from_json(PROMPT.name, record, rows, features)
