"""Configuration of the served models: the string parameters of a config.pbtxt as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """How the acoustic decoder works.

    codec: name in `codec.registry`; device: where it decodes (`cpu`, `cuda`, `cuda:1`, …); threads: of torch, on CPU.
    max_batch: windows decoded at once. max_utterances: open at once. idle_timeout_s: an utterance that gets no chunk
    for so long is forgotten. stop_timeout_s: how long a stopping decoder goes on with what waits.
    """

    codec: str = "tiny"
    device: str = "cpu"
    threads: int = 1
    max_batch: int = 16
    max_utterances: int = 256
    idle_timeout_s: float = 60.0
    stop_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("threads", "max_batch", "max_utterances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.idle_timeout_s < float("inf"):
            raise ValueError(f"idle_timeout_s must be > 0, got {self.idle_timeout_s}")
        if not 0 <= self.stop_timeout_s < float("inf"):
            raise ValueError(f"stop_timeout_s must be >= 0, got {self.stop_timeout_s}")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "DecoderConfig":
        """From a model's parameters; those of another name are somebody else's. ValueError names what does not parse."""
        values = {field.name: field for field in fields(cls) if field.name in parameters}
        return cls(**{name: _parse(name, field.type, parameters[name]) for name, field in values.items()})


def _parse(name: str, kind: object, text: str) -> str | int | float:
    parsers = {str: str, int: int, float: float}
    try:
        return parsers[kind](text)  # type: ignore[index]
    except ValueError:
        raise ValueError(f"{name} must be {kind.__name__}, got {text!r}") from None  # type: ignore[attr-defined]
