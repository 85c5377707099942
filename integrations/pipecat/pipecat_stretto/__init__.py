"""Speech of a Stretto server for Pipecat."""

from pipecat_stretto.tts import StrettoTTSService, StrettoTTSSettings

__all__ = ["StrettoTTSService", "StrettoTTSSettings"]
