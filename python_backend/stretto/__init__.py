"""Code called by the models of `model_repository/` (Triton `backend: "python"`).

`python_backend/` is this project's Python package, not NVIDIA's repository of that name. `docs/architecture.md` lists
the folders and the processes they run in; `tests/test_layers.py` defines their permitted imports.

`from stretto import SpeechLLM` imports the engine, and with it torch and vLLM, on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto.engine.llm import SpeechLLM

__all__ = ["SpeechLLM"]


def __getattr__(name: str) -> Any:
    """Return `SpeechLLM`, imported on first use; raise AttributeError for any other name."""
    if name != "SpeechLLM":
        raise AttributeError(f"module 'stretto' has no attribute {name!r}")
    from stretto.engine.llm import SpeechLLM

    return SpeechLLM
