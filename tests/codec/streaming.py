"""How the tests drive a codec: as the tools do."""

from scripts.codecs.streaming import chunks_of, random_codes, stream

__all__ = ["chunks_of", "random_codes", "stream"]
