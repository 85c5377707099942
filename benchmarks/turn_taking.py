"""Timing of turns in conversations with a full-duplex model, by the definitions of Full-Duplex-Bench.

    python -m benchmarks.turn_taking user.wav reply.wav --turn-end 3.2

https://arxiv.org/abs/2503.04721. A reply takes the turn if its speech lasts for 1 s or longer, or has more than 3
words. Anything shorter is a backchannel, such as "uh-huh".

| figure | meaning |
|---|---|
| `takeover_rate` | share of replies that take the turn: after a turn it should be 1, in a pause of the user 0 |
| `response_latency_s` | mean time from the end of the user's turn to the first speech of replies that take the turn |
| `interruptions` | number of these replies that begin before the end of the user's turn |
| `speaking_rate` | share of replies with more than backchannels; while the model listens, it should be 0 |
| `backchannels_per_s` | mean number of backchannels per second of replies without other speech |

The benchmark detects speech with a neural network and takes words from an English transcript. Here, speech consists of
20 ms frames above -45 dB of full scale, with gaps of less than 0.1 s closed. Without word times, only durations count.
Figures for recorded voices may therefore differ. In the benchmark's code, a backchannel after longer speech also clears
that speech; here, it does not.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

TURN_S, TURN_WORDS = 1.0, 3
MAX_BACKCHANNEL_S, MAX_BACKCHANNEL_WORDS = 1.0, 2
FRAME_S, THRESHOLD_DB, GAP_S = 0.02, -45.0, 0.1

Span = tuple[float, float]  # begin and end in seconds


def speech_spans(pcm: np.ndarray, rate: int) -> list[Span]:
    """Return the spans of speech in samples, float [n]."""
    size = round(FRAME_S * rate)
    frames = np.pad(pcm, (0, -len(pcm) % size)).reshape(-1, size)
    level = 10 * np.log10(np.square(frames, dtype=np.float64).mean(1) + 1e-12)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], level > THRESHOLD_DB, [False]]).astype(int)))
    spans: list[Span] = []
    for begin, end in (edges.reshape(-1, 2) * FRAME_S).tolist():
        if spans and begin - spans[-1][1] < GAP_S:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((begin, end))
    return spans


def takes_turn(speech: Sequence[Span], words: Sequence[Span] | None = None) -> bool:
    """Return True if a reply is more than a backchannel.

    Args:
        speech: Spans of speech of the reply.
        words: Times of its words; None without a transcript.
    """
    spans = speech if words is None else words
    if not spans:
        return False
    return spans[-1][1] - spans[0][0] >= TURN_S or (words is not None and len(words) > TURN_WORDS)


def response_latency(speech: Sequence[Span], turn_end_s: float, words: Sequence[Span] | None = None) -> float | None:
    """Return the time from the end of the user's turn to the reply in seconds; None if the reply takes no turn.

    It is negative if the reply interrupts the user.
    """
    spans = speech if words is None else words
    return spans[0][0] - turn_end_s if takes_turn(speech, words) else None


def backchannels(speech: Sequence[Span], words: Sequence[Span] | None = None) -> tuple[bool, list[Span]]:
    """Return True if the model speaks beyond backchannels while it listens, and its backchannels.

    A span of 1 s or longer, or of more than 2 words, is more than a backchannel. Without a transcript, only the
    duration counts. If the model speaks, it has no backchannels.
    """
    for begin, end in speech:
        num_words = 0 if words is None else sum(each[0] <= end and each[1] >= begin for each in words)
        if end - begin >= MAX_BACKCHANNEL_S or num_words > MAX_BACKCHANNEL_WORDS:
            return True, []
    return False, list(speech)


@dataclass(frozen=True)
class Reply:
    """Reply to one recording.

    Attributes:
        speech: Spans of speech of the reply.
        duration_s: Duration of the recording in seconds.
        turn_end_s: End of the user's turn in seconds; None if the user only pauses or goes on.
        words: Times of the words of the reply; None without a transcript.
    """

    speech: Sequence[Span]
    duration_s: float
    turn_end_s: float | None = None
    words: Sequence[Span] | None = None


def figures(replies: Sequence[Reply]) -> dict[str, float | int | None]:
    """Return the figures of replies to recordings of the same kind; None if no reply has the figure."""
    taken = [takes_turn(reply.speech, reply.words) for reply in replies]
    ended = [(reply, reply.turn_end_s) for reply in replies if reply.turn_end_s is not None]
    latencies = [response_latency(reply.speech, end_s, reply.words) for reply, end_s in ended]
    known = [latency for latency in latencies if latency is not None]
    listened = [backchannels(reply.speech, reply.words) for reply in replies]
    per_s = [len(spans) / reply.duration_s for (_, spans), reply in zip(listened, replies, strict=True)]
    return {
        "replies": len(replies),
        "takeover_rate": float(np.mean(taken)) if taken else None,
        "response_latency_s": float(np.mean(known)) if known else None,
        "interruptions": sum(latency < 0 for latency in known),
        "speaking_rate": float(np.mean([speaks for speaks, _ in listened])) if listened else None,
        "backchannels_per_s": float(np.mean(per_s)) if per_s else None,
    }


def main(words: list[str] | None = None) -> None:
    """Print the figures of one reply as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("user", type=Path, help="recording of the user")
    parser.add_argument("reply", type=Path, help="the model's speech from the same moment")
    parser.add_argument("--turn-end", type=float, metavar="S", help="end of the user's turn; default: of the speech")
    args = parser.parse_args(words)
    user, reply = (soundfile.read(path, dtype="float32", always_2d=True) for path in (args.user, args.reply))
    speech = speech_spans(user[0].mean(1), user[1])
    end_s = args.turn_end if args.turn_end is not None else speech[-1][1] if speech else None
    duration_s = max(len(samples) / rate for samples, rate in (user, reply))
    print(json.dumps(figures([Reply(speech_spans(reply[0].mean(1), reply[1]), duration_s, end_s)])))


if __name__ == "__main__":
    main()
