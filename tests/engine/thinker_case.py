"""Small Qwen3-Omni thinkers in the engine beside transformers' classes."""

from dataclasses import dataclass

from lab.releases.random_qwen3_omni import text_only_config, thinker_config
from tests.engine.harness import Engine
from tests.published_qwen3_omni_thinker import Processor, Theirs, Written

WIDER = text_only_config(thinker_config(128, layers=3, experts=8, active=3))


@dataclass(frozen=True)
class Case:
    """A checkpoint with its engine, and transformers' classes with the tensors of its release."""

    written: Written
    engine: Engine
    theirs: Theirs
    processor: Processor
