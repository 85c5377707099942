"""WebRTC connection to a caller, which a session uses as it uses a WebSocket.

aiortc bounds neither the datagrams that wait nor the messages that are never completed, and its ICE binds to all
addresses of the host. This module replaces these parts of it, by attributes that its releases may rename:
`pyproject.toml` limits the release.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aioice.candidate import Candidate, candidate_foundation, candidate_priority
from aioice.ice import Connection, StunProtocol
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.jitterbuffer import JitterBuffer
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcconfiguration import RTCBundlePolicy
from starlette.types import Message

from stretto_gateway.answers import ApiError
from stretto_gateway.encoding import DEFAULT_RATE
from stretto_gateway.realtime.wire_audio import Resampler, little_endian
from stretto_gateway.webrtc.network import Network
from stretto_gateway.webrtc.offer import OPUS
from stretto_gateway.webrtc.playout import RTP_RATE, Playout, SpeechTrack

LOG = logging.getLogger("stretto_gateway")
for each in ("aioice", "aiortc"):  # they log the addresses of callers, and a traceback for each invalid packet
    logging.getLogger(each).setLevel(logging.ERROR)
REORDERED = 4  # packets within which one may be late; a power of two
MAX_DATAGRAMS = 256  # that wait to be read, of at most MAX_DATAGRAM_BYTES
MAX_DATAGRAM_BYTES = 2048  # above the largest that networks carry whole
MAX_ADDRESSES = 16  # of a caller, learned from its connectivity checks
MAX_HEARD_S = 5.0  # received audio that waits for the session
MAX_DECODING = 64  # received packets that wait to be decoded, and decoded ones, of up to 120 ms each
MAX_CHANNELS = 8  # data channels that a caller may open; the gateway uses the first one
MAX_CHUNKS = 2048  # parts of data channel messages that are not complete yet
MAX_UNREAD_BYTES = 262_144  # sent events that wait; beyond, the session waits for the caller to read
LINGER_S = 2.0  # time for the last events to arrive before the connection is closed
DISCONNECTED: Message = {"type": "websocket.disconnect"}


class Peer:
    """Connection to one caller.

    Args:
        network: Network of the calls.
        max_event_bytes: Maximum size of the caller's events that wait to be handled.

    Attributes:
        playout: Speech to the caller.
    """

    def __init__(self, network: Network, max_event_bytes: int):
        self.playout = Playout()
        self._network, self._max_event_bytes = network, max_event_bytes
        config = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self._connection = RTCPeerConnection(config)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._num_event_bytes = self._num_audio_bytes = self._num_channels = 0
        self._channel: Any = None  # data channel of the events
        self._has_room = asyncio.Event()
        self._opened = asyncio.Event()  # connected, with the data channel if there is one
        self._is_over, self._offers_channel = False, False
        self._listening: asyncio.Task[None] | None = None

    async def answer(self, offer: str) -> str:
        """Return the answer to an offer, and wait for the caller's packets from then on.

        Args:
            offer: Session description that `read_offer` has returned.

        Raises:
            ApiError: 503 if no UDP port is free; 400 if the offer is invalid.
        """
        connection = self._connection
        transceiver = connection.addTransceiver(SpeechTrack(self.playout))
        known = RTCRtpReceiver.getCapabilities("audio")
        assert known is not None
        transceiver.setCodecPreferences([codec for codec in known.codecs if codec.mimeType.lower() == OPUS])
        connection.on("connectionstatechange", self._check_state)
        connection.on("datachannel", self._add_channel)
        connection.on("track", self._listen)
        receiver: Any = transceiver.receiver
        self._receiver, ice = receiver, receiver.transport.transport._connection
        bound_ice(ice, self._has_frames_to_spare)
        ice.gather_candidates = lambda: gather(ice, self._network)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        except Exception as error:  # aiortc has no common class for what is wrong with a description
            raise ApiError(
                400, f"sdp: expected an offer that can be answered: {error}", "sdp", "invalid_value"
            ) from None
        # aiortc's buffer for players holds back 80 ms, and 320 ms after a lost packet.
        receiver._RTCRtpReceiver__jitter_buffer = JitterBuffer(REORDERED, prefetch=1)
        if connection.sctp is not None:
            self._offers_channel = True
            self._bound_sctp(connection.sctp)
        await connection.setLocalDescription()
        return str(connection.localDescription.sdp)

    async def wait_until_open(self) -> None:
        """Wait until the caller is connected, and has opened the data channel if it has offered one."""
        await self._opened.wait()

    async def receive(self) -> Message:
        """Return the next event as text, or the next frame of audio as bytes: pcm16 at 24 kHz."""
        message = await self._inbox.get()
        if "text" in message:
            self._num_event_bytes -= len(message["text"])
        elif "bytes" in message:
            self._num_audio_bytes -= len(message["bytes"])
        return message

    async def send_text(self, text: str) -> None:
        """Send an event, if there is a data channel; wait while too much has not been read.

        Raises:
            RuntimeError: The caller has disconnected.
            ApiError: The event is larger than the caller accepts.
        """
        if not self._offers_channel:
            return
        while not self._is_over and self._channel.bufferedAmount > MAX_UNREAD_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
        if self._is_over or self._channel.readyState != "open":
            raise RuntimeError("the caller has disconnected")
        try:
            self._channel.send(text)
        except ValueError:
            message = f"the event has {len(text)} characters, which is more than the caller accepts on its data channel"
            raise ApiError(400, message, code="too_large") from None

    async def send_bytes(self, data: bytes) -> None:
        """Raise ApiError, because sessions over WebRTC send no files."""
        raise ApiError(400, "a data channel carries no files", code="unsupported")

    async def close(self, code: int, reason: str) -> None:
        """Close the connection once the last events have arrived, for which there are LINGER_S seconds."""
        sctp = self._connection.sctp
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._is_over and sctp is not None and has_unsent(sctp):
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Release the sockets and threads of the connection."""
        self._end()
        if self._listening is not None:
            self._listening.cancel()
        await self._connection.close()

    def hang_up(self) -> None:
        """End the session as if the caller had disconnected."""
        self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._inbox.put_nowait(DISCONNECTED)
        self._has_room.set()
        self._opened.set()
        self.playout.clear()

    def _check_state(self) -> None:
        match self._connection.connectionState:
            case "connected" if not self._offers_channel or self._channel is not None:
                self._opened.set()
            case "failed" | "closed":
                self._end()

    def _add_channel(self, channel: Any) -> None:
        self._num_channels += 1
        if self._num_channels > MAX_CHANNELS:
            return self._break(f"it has opened more than {MAX_CHANNELS} data channels")
        if self._channel is not None:
            return None  # the events are those of the first channel
        self._channel = channel
        channel.bufferedAmountLowThreshold = MAX_UNREAD_BYTES // 2
        channel.on("bufferedamountlow", self._has_room.set)
        channel.on("message", self._receive_event)
        channel.on("close", self._end)
        self._opened.set()
        return None

    def _receive_event(self, text: str | bytes) -> None:
        self._num_event_bytes += len(text)
        if self._num_event_bytes > self._max_event_bytes:
            return self._break(f"more than {self._max_event_bytes} bytes of its events wait to be handled")
        # The session reports that events are text.
        message = text if isinstance(text, str) else text.decode("latin-1")
        self._inbox.put_nowait({"type": "websocket.receive", "text": message})
        return None

    def _listen(self, track: Any) -> None:
        self._track = track
        self._listening = asyncio.ensure_future(self._read(track))

    async def _read(self, track: Any) -> None:
        """Pass on the caller's audio, which is dropped while too much waits."""
        resampler = Resampler(RTP_RATE, DEFAULT_RATE)
        with suppress(MediaStreamError):
            while True:
                data = little_endian(resampler.resample_frame(await track.recv()))
                if data and self._num_audio_bytes < 2 * DEFAULT_RATE * MAX_HEARD_S:
                    self._num_audio_bytes += len(data)
                    self._inbox.put_nowait({"type": "websocket.receive", "bytes": data})

    def _has_frames_to_spare(self) -> bool:
        """Return True if more received audio may be decoded."""
        track = getattr(self, "_track", None)
        if track is None:
            return True
        decoding = self._receiver._RTCRtpReceiver__decoder_queue
        return bool(track._queue.qsize() + decoding.qsize() < MAX_DECODING)

    def _bound_sctp(self, sctp: Any) -> None:
        """End the call if the caller leaves messages incomplete without end, or sends what SCTP does not allow."""
        handle = sctp._handle_data

        async def handle_bounded(data: bytes) -> None:
            try:
                await handle(data)
            except ConnectionError:
                raise
            except Exception as error:  # by assertions of aiortc, and by text that is not UTF-8
                self._break(f"its data channel is invalid: {type(error).__name__}")
                return
            streams = sctp._inbound_streams.values()
            num_chunks = len(sctp._sack_misordered) + sum(len(stream.reassembly) for stream in streams)
            if sctp._advertised_rwnd < 0 or num_chunks > MAX_CHUNKS or len(streams) > 2 * MAX_CHANNELS:
                self._break("the messages of its data channel do not end")

        sctp._handle_data = handle_bounded

    def _break(self, reason: str) -> None:
        """End a call whose caller does not keep to a limit."""
        if not self._is_over:
            LOG.warning("a call was ended, because %s", reason)
        self._end()


def has_unsent(sctp: Any) -> bool:
    """Return True if the other side has not confirmed all messages."""
    return bool(sctp._data_channel_queue or sctp._outbound_queue or sctp._sent_queue)


def bound_ice(ice: Any, has_room: Callable[[], bool]) -> None:
    """Limit the packets of a connection that wait, and the addresses that its caller may use.

    Args:
        ice: The `Connection` of aioice.
        has_room: Function that returns True if more received audio may be decoded.
    """
    receive, check = ice.data_received, ice.request_received

    def data_received(data: bytes, component: int) -> None:
        is_media = bool(data) and 127 < data[0] < 192  # RFC 7983
        if len(data) > MAX_DATAGRAM_BYTES or ice._queue.qsize() >= MAX_DATAGRAMS or (is_media and not has_room()):
            return
        receive(data, component)

    def request_received(message: Any, address: tuple[str, int], protocol: StunProtocol) -> None:
        known = {pair.remote_addr for pair in ice._check_list}
        if address in known or len(known) < MAX_ADDRESSES:
            check(message, address, protocol)

    ice.data_received = data_received
    ice.request_received = request_received


async def gather(ice: Connection, network: Network) -> None:
    """Open a socket at each address of the network, in place of aioice's at all addresses of the host.

    Raises:
        ApiError: 503 if no port is free.
    """
    for address in network.addresses:
        protocol = await open_socket(ice, address.bound, network)
        port = protocol.transport.get_extra_info("sockname")[1]
        protocol.local_candidate = Candidate(
            foundation=candidate_foundation("host", "udp", address.announced),
            component=1,
            transport="udp",
            priority=candidate_priority(1, "host"),
            host=address.announced,
            port=port,
            type="host",
        )
        ice._protocols.append(protocol)
        ice._local_candidates.append(protocol.local_candidate)
    ice._local_candidates_start = ice._local_candidates_end = True


async def open_socket(ice: Connection, address: str, network: Network) -> StunProtocol:
    """Bind a socket to the first free port.

    Raises:
        ApiError: 503 if no port is free.
    """
    loop = asyncio.get_running_loop()
    for port in network.shuffled_ports():
        try:
            _, protocol = await loop.create_datagram_endpoint(lambda: StunProtocol(ice), local_addr=(address, port))
        except OSError as error:
            failure = error
            continue
        return protocol
    LOG.warning("no UDP port of the calls is free at %s: %s", address, failure)
    raise ApiError(503, "no UDP port is free for the call; try again", code="unavailable")
