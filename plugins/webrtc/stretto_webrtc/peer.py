"""WebRTC connection to a caller, which a session uses like a WebSocket.

In aiortc, neither queues nor the work for one packet are bounded, closing can wait for a failed task, and ICE binds to
all addresses of the host. This module replaces these parts of it, by attributes that its releases may rename, so
`pyproject.toml` limits the release.
"""

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

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
from stretto_webrtc.network import CallNetwork
from stretto_webrtc.offer import OPUS
from stretto_webrtc.playout import RTP_RATE, Playout, SpeechTrack

LOG = logging.getLogger("stretto_gateway")
for package in ("aioice", "aiortc"):  # they log the addresses of callers, and a traceback for each invalid packet
    logging.getLogger(package).setLevel(logging.ERROR)
REORDERED = 4  # packets within which one may be late; a power of two
MAX_DATAGRAMS = 256  # maximum number that wait to be read, each of at most MAX_DATAGRAM_BYTES
MAX_DATAGRAM_BYTES = 2048  # above the largest that networks carry whole
MAX_STUN_BYTES = 1280  # maximum size of connectivity checks, which must not be fragmented (RFC 8489, section 6.1)
MAX_STUN_ATTRIBUTES = 32  # browsers send ten
STUN_HEADER_BYTES = 20
STUN_COOKIE = b"\x21\x12\xa4\x42"
STUN_REQUEST = b"\x00\x01"  # a binding request
STUN_FINGERPRINT = 0x8028
ATTRIBUTE_HEAD = struct.Struct("!HH")
MAX_ADDRESSES = 16  # maximum number of a caller's addresses, learned from its connectivity checks
MAX_HEARD_S = 5.0  # received audio that waits for the session
MAX_DECODING = 64  # received packets that wait to be decoded, and decoded ones, of up to 120 ms each
MAX_SOURCES = 8  # SSRCs in a caller's packets; libsrtp and aiortc keep a state for each, and search through them
MAX_CHANNELS = 8  # data channels that a caller may open; the gateway uses the first one
MAX_LABEL_CHARS = 1000  # maximum length of a data channel's label and protocol together
MAX_CHUNKS = 2048  # parts of data channel messages that are not complete yet
EVENT_BYTES = 256  # memory for each event that waits, in addition to its text
MAX_UNREAD_BYTES = 262_144  # sent events that wait; beyond, the session waits for the caller to read
LINGER_S = 2.0  # time for the last events to arrive before the connection is closed
CLOSE_S = 5.0  # time for aiortc to end a connection, or one part of it
DISCONNECTED: Message = {"type": "websocket.disconnect"}


class Peer:
    """Connection to one caller.

    Args:
        max_event_bytes: Maximum size of the caller's events that wait to be handled, with EVENT_BYTES for each.
    """

    def __init__(self, network: CallNetwork, max_event_bytes: int):
        self.playout = Playout()
        self._network = network
        self._max_event_bytes = max_event_bytes
        config = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self._connection = RTCPeerConnection(config)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._num_event_bytes = self._num_audio_bytes = self._num_channels = 0
        self._channel: Any = None  # data channel of the events
        self._has_room = asyncio.Event()
        self._opened = asyncio.Event()  # connected, with the data channel if there is one
        self._is_over = False
        self._offers_channel = False
        self._listening: asyncio.Task[None] | None = None
        self._parts: list[Any] = []  # parts of aiortc's connection, in the order in which they are stopped
        self._sockets: list[asyncio.DatagramTransport] = []
        self._sources = set[bytes]()  # SSRCs in the caller's packets

    async def answer(self, offer: str) -> str:
        """Return the answer to an offer, and wait for the caller's packets from then on.

        Args:
            offer: Session description that `read_offer` has returned.

        Raises:
            ApiError: 503 if no UDP port is free; 400 if the offer is invalid.
        """
        connection = self._connection
        transceiver = connection.addTransceiver(SpeechTrack(self.playout))
        capabilities = RTCRtpReceiver.getCapabilities("audio")
        assert capabilities is not None
        transceiver.setCodecPreferences([codec for codec in capabilities.codecs if codec.mimeType.lower() == OPUS])
        connection.on("connectionstatechange", self._check_state)
        connection.on("datachannel", self._add_channel)
        connection.on("track", self._listen)
        receiver: Any = transceiver.receiver
        transport = receiver.transport
        self._receiver = receiver
        ice = transport.transport._connection
        self._parts = [receiver, transceiver.sender, transport, transport.transport]
        bound_ice(ice, self._has_frames_to_spare)
        ice.gather_candidates = lambda: gather(ice, self._network, self._sockets)
        self._bound_media(transport, transceiver.sender)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            # aiortc's buffer for players holds back 80 ms, and 320 ms after a lost packet.
            receiver._RTCRtpReceiver__jitter_buffer = JitterBuffer(REORDERED, prefetch=1)
            if connection.sctp is not None:
                self._offers_channel = True
                self._bound_sctp(connection.sctp)
                self._parts.insert(0, connection.sctp)
            await connection.setLocalDescription()
        except ApiError:  # no port
            raise
        except Exception as error:  # aiortc has no common class for what is wrong with a description
            raise ApiError(
                400, f"sdp: expected an offer that can be answered: {error}", "sdp", "invalid_value"
            ) from None
        return str(connection.localDescription.sdp)

    async def wait_until_open(self) -> None:
        """Wait until the caller is connected, and has opened the data channel if its offer has one."""
        await self._opened.wait()

    async def receive(self) -> Message:
        """Return the next event as text, or the next frame of audio as bytes: pcm16 at 24 kHz."""
        message = await self._inbox.get()
        if "text" in message:
            self._num_event_bytes -= len(message["text"]) + EVENT_BYTES
            message["text"] = message["text"].decode()
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
        """Wait until the last events have arrived, at most LINGER_S. `stop` then ends the connection."""
        sctp = self._connection.sctp
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._is_over and sctp is not None and has_unsent(sctp):
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Release the sockets and threads of the connection, even if aiortc does not end it."""
        self._end()
        if self._listening is not None:
            self._listening.cancel()
        try:
            if not await is_ended(self._connection.close()):
                for component in self._parts:
                    await is_ended(component.stop())
        finally:
            for socket in self._sockets:
                socket.abort()

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
        if len(channel.label) + len(channel.protocol) > MAX_LABEL_CHARS:
            return self._break(f"the label of a data channel has more than {MAX_LABEL_CHARS} characters")
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
        # The session reports that events are text. As UTF-8, they need no more memory than is counted.
        data = text.encode() if isinstance(text, str) else text.decode("latin-1").encode()
        self._num_event_bytes += len(data) + EVENT_BYTES
        if self._num_event_bytes > self._max_event_bytes:
            return self._break(f"more than {self._max_event_bytes} bytes of its events wait to be handled")
        self._inbox.put_nowait({"type": "websocket.receive", "text": data})
        return None

    def _listen(self, track: Any) -> None:
        self._track = track
        self._listening = asyncio.ensure_future(self._read(track))

    async def _read(self, track: Any) -> None:
        """Pass the caller's audio to the session; drop it while too much waits."""
        resampler = Resampler(RTP_RATE, DEFAULT_RATE)
        with suppress(MediaStreamError):
            while True:
                data = little_endian(resampler.resample_frame(await track.recv()))
                if data and self._num_audio_bytes < 2 * DEFAULT_RATE * MAX_HEARD_S:
                    self._num_audio_bytes += len(data)
                    self._inbox.put_nowait({"type": "websocket.receive", "bytes": data})

    def _has_frames_to_spare(self) -> bool:
        if self._is_over:
            return False
        track = getattr(self, "_track", None)
        if track is None:
            return True
        decoding = self._receiver._RTCRtpReceiver__decoder_queue
        return bool(track._queue.qsize() + decoding.qsize() < MAX_DECODING)

    def _bound_media(self, transport: Any, sender: Any) -> None:
        """Wrap aiortc's handlers: the call ends if its caller sends from too many sources, or malformed packets."""
        rtp = transport._handle_rtp_data
        rtcp = transport._handle_rtcp_data
        report = self._receiver._run_rtcp

        async def handle_rtp(data: bytes, **options: int) -> None:
            if self._is_of_few(data[8:12]):
                await self._bounded(rtp(data, **options), "its audio is invalid")

        async def handle_rtcp(data: bytes) -> None:
            if self._is_of_few(data[4:8]):
                await self._bounded(rtcp(data), "its reports are invalid")

        async def report_and_exit() -> None:
            try:
                await self._bounded(report(), "its audio cannot be reported on")
            finally:
                self._receiver._RTCRtpReceiver__rtcp_exited.set()  # for which the receiver's `stop` waits

        async def ignore(_: Any) -> None:
            """Ignore a report, because it can ask for thousands of packets again, and its other fields are not used."""

        transport._handle_rtp_data = handle_rtp
        transport._handle_rtcp_data = handle_rtcp
        self._receiver._run_rtcp = report_and_exit
        sender._handle_rtcp_packet = ignore

    def _is_of_few(self, source: bytes) -> bool:
        """Return True if a packet may be handled; end the call if it is from one source too many."""
        if self._is_over:
            return False
        self._sources.add(source)
        if len(self._sources) > MAX_SOURCES:
            self._break(f"its packets have more than {MAX_SOURCES} sources (SSRC)")
        return not self._is_over

    async def _bounded(self, work: Awaitable[None], reason: str) -> None:
        """Wait for aiortc to process data from the caller; end the call if it fails."""
        try:
            await work
        except ConnectionError:
            raise
        except Exception as error:  # also by assertions of aiortc, and by text that is not UTF-8
            self._break(f"{reason}: {type(error).__name__}")

    def _bound_sctp(self, sctp: Any) -> None:
        """End the call if the caller's incomplete messages exceed a limit, or its data violates SCTP."""
        handle = sctp._handle_data
        handle_sack = sctp._receive_sack_chunk

        async def handle_bounded(data: bytes) -> None:
            if self._is_over:
                return
            await self._bounded(handle(data), "its data channel is invalid")
            await asyncio.sleep(0)  # a packet of 80 parts costs up to 10 ms, and the next ones are often here already
            streams = sctp._inbound_streams.values()
            num_streams = max(len(streams), len(sctp._data_channels))
            num_chunks = len(sctp._sack_misordered) + sum(len(stream.reassembly) for stream in streams)
            if sctp._advertised_rwnd < 0 or num_chunks > MAX_CHUNKS or num_streams > 2 * MAX_CHANNELS:
                self._break("the messages of its data channel do not end")

        async def handle_sack_bounded(chunk: Any) -> None:
            # aiortc counts to the end of each gap, of which a packet can name 24 million numbers.
            if sum(max(0, end - begin) for begin, end in chunk.gaps) > MAX_CHUNKS:
                raise ValueError
            await handle_sack(chunk)

        sctp._handle_data = handle_bounded
        sctp._receive_sack_chunk = handle_sack_bounded

    def _break(self, reason: str) -> None:
        """End the call of a caller that exceeds a limit."""
        if not self._is_over:
            LOG.warning("a call was ended, because %s", reason)
        self._end()


async def is_ended(end: Awaitable[None]) -> bool:
    """Wait at most CLOSE_S for a part of aiortc to end; return True if it has ended in order."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await end
    except Exception as error:
        LOG.warning("a call's connection has not ended in order: %s", type(error).__name__)
        return False
    return True


def has_unsent(sctp: Any) -> bool:
    """Return True if the other side has not acknowledged all messages."""
    return bool(sctp._data_channel_queue or sctp._outbound_queue or sctp._sent_queue)


def bound_ice(ice: Any, has_room: Callable[[], bool]) -> None:
    """Limit a connection's waiting packets and its caller's addresses.

    STUN requests without the call's ICE password are not answered, because their source address may be forged.

    Args:
        has_room: Function that returns True if more received audio may be decoded.
    """
    receive = ice.data_received
    check = ice.request_received
    refuse = ice.respond_error

    def data_received(data: bytes, component: int) -> None:
        first_byte = data[0] if data else 0
        # RFC 7983
        is_tls = 20 <= first_byte < 64
        is_media = 128 <= first_byte < 192
        fits = len(data) <= MAX_DATAGRAM_BYTES and ice._queue.qsize() < MAX_DATAGRAMS
        if fits and (is_tls or (is_media and has_room())):
            receive(data, component)

    def request_received(message: Any, address: tuple[str, int], protocol: StunProtocol) -> None:
        if is_known(ice, address) or len(ice._remote_candidates) < MAX_ADDRESSES:
            check(message, address, protocol)

    def respond_error(message: Any, address: tuple[str, int], protocol: StunProtocol, error: tuple[int, str]) -> None:
        if error[0] not in (400, 401):  # to a request without the password, whose address may be another host's
            refuse(message, address, protocol, error)

    ice.data_received = data_received
    ice.request_received = request_received
    ice.respond_error = respond_error


def is_known(ice: Any, address: tuple[str, int]) -> bool:
    """Return True if a connectivity check with the password has come from an address."""
    return any((remote_candidate.host, remote_candidate.port) == address for remote_candidate in ice._remote_candidates)


def is_well_formed(message: bytes) -> bool:
    """Return True for a STUN message that a few attributes fill exactly, with FINGERPRINT only as the last.

    aioice computes a checksum of the message at each FINGERPRINT, wherever it is.
    """
    if int.from_bytes(message[2:4]) != len(message) - STUN_HEADER_BYTES or message[4:8] != STUN_COOKIE:
        return False
    position = STUN_HEADER_BYTES
    for _ in range(MAX_STUN_ATTRIBUTES):
        if position + ATTRIBUTE_HEAD.size > len(message):
            break
        attribute, num_bytes = ATTRIBUTE_HEAD.unpack_from(message, position)
        position += ATTRIBUTE_HEAD.size + num_bytes + -num_bytes % 4
        if attribute == STUN_FINGERPRINT and position != len(message):
            return False
    return position == len(message)


class CallSocket(StunProtocol):
    """Socket of a call, which drops invalid datagrams and those of unknown senders before they are parsed."""

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        """Handle a datagram. Unless it is a connectivity check, it must be from an address that has passed one."""
        message = cast(bytes, data)
        is_stun = not message or message[0] < 4  # RFC 7983
        if self._is_expected(message) if is_stun else is_known(self.receiver, addr[:2]):
            with suppress(struct.error, LookupError):  # aioice does not check all lengths and attributes
                super().datagram_received(data, addr)

    def _is_expected(self, message: bytes) -> bool:
        """Return True for a check with this call's user name, or the answer to a check that was sent."""
        if not STUN_HEADER_BYTES <= len(message) <= MAX_STUN_BYTES:
            return False
        if message[:2] == STUN_REQUEST:
            is_ours = f"{self.receiver.local_username}:".encode() in message
        else:
            is_ours = message[8:STUN_HEADER_BYTES] in self.transactions
        return is_ours and is_well_formed(message)


async def gather(ice: Connection, network: CallNetwork, sockets: list[asyncio.DatagramTransport]) -> None:
    """Open a socket at each address of the network, not all of the host; raise ApiError 503 if no port is free."""
    for address in network.addresses:
        protocol = await open_socket(ice, address.bound, network)
        sockets.append(protocol.transport)
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


async def open_socket(ice: Connection, address: str, network: CallNetwork) -> StunProtocol:
    """Bind a socket to the first free port; raise ApiError 503 if no port is free."""
    loop = asyncio.get_running_loop()
    for port in network.shuffled_ports():
        try:
            _, protocol = await loop.create_datagram_endpoint(lambda: CallSocket(ice), local_addr=(address, port))
        except OSError as error:
            failure = error
            continue
        return protocol
    LOG.warning("no UDP port of the calls is free at %s: %s", address, failure)
    raise ApiError(503, "no UDP port is free for the call; try again", code="unavailable")
