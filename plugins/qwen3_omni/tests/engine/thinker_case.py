"""Small Qwen3-Omni thinkers in the engine beside transformers' classes."""

from dataclasses import dataclass

from plugins.qwen3_omni.lab.random_qwen3_omni import text_only_config, thinker_config
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import Processor, Theirs, Written
from tests.engine.harness import Engine

WIDER = text_only_config(thinker_config(128, layers=3, experts=8, active=3))


@dataclass(frozen=True)
class Case:
    """A checkpoint with its engine, and transformers' classes with the tensors of its release."""

    written: Written
    engine: Engine
    theirs: Theirs
    processor: Processor
