"""A small family with text replies, some of which a speaker speaks."""

from dataclasses import replace

from stretto.family.mechanism import Mechanism
from stretto.family.served import SpokenTask
from stretto_qwen3_omni.qwen3_omni.family import Talker
from tests.speech_families import EIGHT_STREAMS

_LISTEN = EIGHT_STREAMS.task("listen")
SPOKEN = replace(
    EIGHT_STREAMS,
    name="spoken",
    tasks=(SpokenTask(**vars(_LISTEN) | {"name": "answer"}), _LISTEN),
    guided_streams=(),
    mechanism=Mechanism(speaker=Talker(state_layer=2)),
)
