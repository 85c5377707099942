"""The memory that one utterance shares with the server: its audio on the way in."""

from tritonclient.grpc.aio import InferenceServerClient

from client.regions import Memory, Region, new_region


class Sharing:
    """Made with the request and closed when the utterance is over."""

    def __init__(self, memory: Memory):
        self._memory = memory
        self._regions: list[Region] = []
        self._registered: list[Region] = []

    def region(self, byte_size: int) -> Region:
        """A fresh region of `byte_size` bytes."""
        region = new_region(self._memory, "stretto_in", byte_size)
        self._regions.append(region)
        return region

    async def register(self, server: InferenceServerClient) -> None:
        """Let the server read from the regions."""
        for region in self._regions:
            await region.register(server)
            self._registered.append(region)

    async def close(self, server: InferenceServerClient) -> None:
        """Take everything back, whether or not the server still answers."""
        registered, self._registered = self._registered, []
        try:
            for region in registered:
                await region.unregister(server)
        finally:
            while self._regions:
                self._regions.pop().close()
