"""Slow reference of the penalty on codes, for `stretto.testing`."""

from stretto_moss.moss_tts_realtime.mechanism.reference import RecentIds


class RepeatedCodes(RecentIds):
    """Penalty on the codes that a codebook has in the reply so far."""

    def penalized(self, logits: list[float], usual: list[float], stream: int) -> list[float]:
        return super().penalized(logits, usual, stream) if stream else logits
