"""Speech of a Stretto server for LiveKit Agents."""

import logging

from livekit.agents import Plugin

from .tts import TTS

__version__ = "0.2.0"
__all__ = ["TTS", "__version__"]


class StrettoPlugin(Plugin):
    """Registration with LiveKit Agents."""

    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__, logging.getLogger(__name__))


Plugin.register_plugin(StrettoPlugin())
