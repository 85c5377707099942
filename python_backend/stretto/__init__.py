"""Python code for the Triton models in `model_repository/` (`backend: "python"`) and for the `stretto` command.

The folder `python_backend/` is unrelated to NVIDIA's repository of that name. `docs/architecture.md` lists the packages
and the processes that import them; `tests/test_layers.py` defines which package may import which.

`from stretto import SpeechLLM` imports the engine, and with it torch and vLLM, on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto.engine.llm import SpeechLLM

__all__ = ["SpeechLLM"]


def __getattr__(name: str) -> Any:
    """Import and return `SpeechLLM`; raise AttributeError for any other name."""
    if name != "SpeechLLM":
        raise AttributeError(f"module 'stretto' has no attribute {name!r}")
    from stretto.engine.llm import SpeechLLM

    return SpeechLLM
