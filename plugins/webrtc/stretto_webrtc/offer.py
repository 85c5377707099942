"""Callers' offers: session descriptions (SDP) with an audio line and at most one data channel."""

from aiortc.rtcdtlstransport import X509_DIGEST_ALGORITHMS
from aiortc.sdp import MediaDescription, SessionDescription

from stretto_gateway.answers import ApiError, mismatch

MAX_SDP_BYTES = 65_536  # ten times the offers of browsers
MAX_SDP_LINES = 500  # without candidates; aiortc's parser is quadratic in some lines
# RFC 7587: the clock rate of Opus, whatever the audio's sample rate
OPUS = "audio/opus"
OPUS_RATE = 48_000
DIRECTIONS = ("sendrecv", "recvonly", "sendonly")
CANDIDATES = ("a=candidate:", "a=end-of-candidates", "a=remote-candidates:")


def read_offer(text: str) -> str:
    """Return an offer without its candidates.

    The gateway never sends to an address that a session description names. It learns the caller's addresses from the
    caller's own connectivity checks (RFC 8445, section 7.3.1.3), which must have the password of the answer.

    Raises:
        ApiError: 413 if the description is too long; 400 if it is not an offer that the gateway can answer.
    """
    num_bytes = len(text.encode(errors="surrogatepass"))
    if num_bytes > MAX_SDP_BYTES:
        message = f"sdp: expected at most {MAX_SDP_BYTES} bytes, got {num_bytes}"
        raise ApiError(413, message, "sdp", "request_too_large")
    lines = [line for line in text.splitlines() if line and not line.startswith(CANDIDATES)]
    if len(lines) > MAX_SDP_LINES:
        raise mismatch("sdp", f"at most {MAX_SDP_LINES} lines without candidates", f"{len(lines)}")
    if not lines or lines[0] != "v=0":
        raise mismatch("sdp", "a session description, which begins with v=0", "another text")
    offer = "\r\n".join(lines) + "\r\n"
    try:
        description = SessionDescription.parse(offer)
    except (ValueError, AssertionError, LookupError, AttributeError, TypeError, StopIteration):
        raise mismatch("sdp", "a valid session description (RFC 8866)", "one with an invalid line") from None
    check_lines(description)
    return offer


def check_receives(offer: str) -> None:
    """Raise ApiError if the caller cannot receive audio, because a conversation's speech could not be played."""
    if any(media.direction == "sendonly" for media in SessionDescription.parse(offer).media):
        raise mismatch("sdp", "an audio line that receives the speech of the model (a=sendrecv)", "a=sendonly")


def check_lines(description: SessionDescription) -> None:
    """Raise ApiError unless the gateway can answer the offer."""
    kinds = [media.kind for media in description.media]
    if kinds.count("audio") != 1 or kinds.count("application") > 1 or set(kinds) - {"audio", "application"}:
        expected = "one audio line and at most one data channel (m=audio, m=application)"
        raise mismatch("sdp", expected, ", ".join(kinds[:8]) or "no line")
    mids: list[str | None] = [media.rtp.muxId for media in description.media]
    if None in mids or len(set(mids)) < len(mids):
        raise mismatch("sdp", "a line a=mid:ID of its own in each part", "other lines")
    grouped = [group.items for group in description.group if group.semantic == "BUNDLE"]
    if grouped != [mids] and (grouped or len(mids) > 1):
        raise mismatch("sdp", f"a=group:BUNDLE {' '.join(map(str, mids))}", "other groups")
    audio = next(media for media in description.media if media.kind == "audio")
    codecs = [(codec.mimeType.lower(), codec.clockRate) for codec in audio.rtp.codecs]
    if (OPUS, OPUS_RATE) not in codecs:
        named = ", ".join(f"{name.removeprefix('audio/')}/{rate}" for name, rate in codecs[:8])
        raise mismatch("sdp", "the codec opus/48000 in the audio line", named or "none")
    for media in description.media:
        check_security(media)
        check_numbers(media)


def check_security(media: MediaDescription) -> None:
    """Raise ApiError unless a line of an offer has the fields that ICE and DTLS need."""
    if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
        raise mismatch("sdp", "a=ice-ufrag and a=ice-pwd", "a line without them")
    if media.ice.iceLite:
        raise mismatch("sdp", "a caller that sends connectivity checks", "a=ice-lite")
    fingerprints = (
        [fingerprint.algorithm.lower() for fingerprint in media.dtls.fingerprints] if media.dtls is not None else []
    )
    if not set(fingerprints) & set(X509_DIGEST_ALGORITHMS):
        expected = f"a=setup, and a=fingerprint with one of {', '.join(X509_DIGEST_ALGORITHMS)}"
        raise mismatch("sdp", expected, ", ".join(fingerprints[:8]) or "a line without them")
    if media.kind == "audio" and not media.rtcp_mux:
        raise mismatch("sdp", "a=rtcp-mux in the audio line", "a line without it")
    if media.kind == "audio" and media.direction not in DIRECTIONS:
        expected = f"an audio line that sends or receives ({', '.join(f'a={direction}' for direction in DIRECTIONS)})"
        raise mismatch("sdp", expected, f"a={media.direction}" if media.direction else "a line without a direction")
    if media.kind == "application" and media.sctp_port is None:
        raise mismatch("sdp", "a=sctp-port in the line of the data channel", "a line without it")


def check_numbers(media: MediaDescription) -> None:
    """Raise ApiError if a number in a line is outside the range of its field in packets."""
    ids = [extension.id for extension in media.rtp.headerExtensions]
    named: list[tuple[str, int, int, list[int]]] = [
        ("a=ssrc", 0, 0xFFFFFFFF, [source.ssrc for source in media.ssrc]),
        ("a=extmap", 1, 0xFF, ids),
        ("a=sctp-port", 1, 0xFFFF, [] if media.sctp_port is None else [media.sctp_port]),
    ]
    for attribute, least, largest, numbers in named:
        if not all(least <= number <= largest for number in numbers):
            raise mismatch("sdp", f"a number from {least} to {largest} in {attribute}", "another one")
