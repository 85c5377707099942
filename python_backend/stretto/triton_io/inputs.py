"""Inputs of a request to the ensemble."""

from typing import Any

from stretto.triton_io import schema
from stretto.triton_io.tensors import read_array, read_bytes, read_files, read_scalar


def read_inputs(request: Any) -> dict[str, Any]:
    """Return all inputs by name, unconverted; None for absent ones."""
    return {
        "text": read_bytes(request, schema.TEXT),
        "audio": read_files(request, schema.AUDIO),
        "pcm_in": read_array(request, schema.PCM_IN),
        "sample_rate": read_scalar(request, schema.SAMPLE_RATE),
        "messages": read_bytes(request, schema.MESSAGES),
        "task": read_bytes(request, schema.TASK),
        "options": read_bytes(request, schema.OPTIONS),
        "session": read_bytes(request, schema.SESSION),
    }
