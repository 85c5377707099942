"""Shared memory of one utterance: regions for its input audio and a ring for its samples."""

from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.regions import Memory, Region, new_region
from stretto_client.ring import Ring, RingSize


class Sharing:
    """Shared memory of one request, closed after the utterance. `headers` grant access to the server's API."""

    def __init__(self, memory: Memory, ring_size: RingSize, headers: dict[str, str]):
        self._memory, self._ring_size, self._headers = memory, ring_size, headers
        self.ring: Ring | None = None
        self._regions: list[Region] = []
        self._registered: list[Region] = []

    def region(self, byte_size: int) -> Region:
        """Return a new region of `byte_size` bytes."""
        region = new_region(self._memory, "stretto_in", byte_size)
        self._regions.append(region)
        return region

    def make_ring(self) -> Ring:
        """Create and return the ring for the samples."""
        self.ring = Ring(self._memory, self._ring_size)
        return self.ring

    async def register(self, server: InferenceServerClient) -> None:
        """Register the regions with the server."""
        for region in self._regions:
            await region.register(server, self._headers)
            self._registered.append(region)

    async def close(self, server: InferenceServerClient) -> None:
        """Unregister and free everything, even if the server no longer answers."""
        registered, self._registered = self._registered, []
        try:
            for region in registered:
                await region.unregister(server, self._headers)
        finally:
            while self._regions:
                self._regions.pop().close()
            ring, self.ring = self.ring, None
            if ring is not None:
                try:
                    await ring.until_free()
                finally:
                    ring.close()
