"""Live sessions in an engine that is run step by step: senders of audio at random paces."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stretto.engine.reply_rules import TextUpdate
from stretto.records.prompt import Prompt
from tests.engine.harness import Answer, Engine, update_request

MOST = 4  # sessions at once, as the front end would admit


@dataclass
class Speaker:
    """Sender of a recording's frames, one or a few at a time, with pauses of `slowest` steps at most."""

    engine: Engine
    name: str
    prompt: Prompt
    random: np.random.Generator
    slowest: int
    num_sent: int = 0
    due: int = 0
    is_open: bool = False
    answer: Answer = field(default_factory=Answer)

    def __post_init__(self) -> None:
        streams = self.engine.scheduler.table.rules.family.track_streams
        self.frames = np.array(self.prompt.track).reshape(-1, len(streams))

    def begin(self) -> None:
        self.engine.add(self.name, replace(self.prompt, track=(), is_open=True))
        self.is_open = True

    def speak(self, step: int) -> None:
        if not self.is_open or step < self.due:
            return
        size = int(self.random.integers(0, 4)) if self.random.random() < 0.9 else 30
        part = self.frames[self.num_sent : self.num_sent + size]
        self.num_sent += len(part)
        # the end comes with the last frame or after it
        is_last = self.num_sent == len(self.frames) and (size == 0 or self.random.random() < 0.5)
        self.send(part, is_last)
        self.due = step + int(self.random.integers(1, self.slowest + 1))

    def send(self, frames: np.ndarray, is_last: bool) -> None:
        update = TextUpdate(self.name, frames.reshape(-1).astype(np.int32), is_last)
        self.engine.core.add_request(update_request(update))
        self.is_open = not is_last


def play(
    engine: Engine, recordings: Sequence[Prompt], seed: int, slowest: int, aborts: int = 0, others: int = 0
) -> dict[str, Answer]:
    """Run sessions at random paces, some of which leave, among whole recordings; return the answers that remain.

    Args:
        engine: Engine, which is idle.
        recordings: Prompts of whole recordings; session i, called `s{i}`, sends that of recording i.
        seed: Seed of the paces.
        slowest: Maximum number of steps between two parts of a session.
        aborts: Number of sessions that leave.
        others: Number of whole recordings, called `r{i}`, which are those of the first sessions.
    """
    random, steps = np.random.default_rng(seed), 0
    speakers = [Speaker(engine, f"s{at}", prompt, random, slowest) for at, prompt in enumerate(recordings)]
    whole = {f"r{at}": recordings[at] for at in range(others)}
    answers = {each.name: each.answer for each in speakers} | {name: Answer() for name in whole}
    arrivals = {name: int(random.integers(0, 60)) for name in answers}
    leaving = {f"s{at}": int(random.integers(10, 90)) for at in random.permutation(len(recordings))[:aborts]}
    while arrivals or engine.is_busy() or any(each.is_open for each in speakers):
        num_open = sum(each.name not in arrivals and each.answer.trailer is None for each in speakers)
        for name in [name for name, at in arrivals.items() if at <= steps]:
            if name in whole:
                engine.add(name, whole[name])
            elif num_open < MOST:
                next(each for each in speakers if each.name == name).begin()
                num_open += 1
            else:
                continue
            del arrivals[name]
        for name in [name for name, at in leaving.items() if at <= steps and name not in arrivals]:
            engine.core.abort_requests([name])
            speaker = next(each for each in speakers if each.name == name)
            speaker.is_open, speaker.answer.trailer = False, speaker.answer.trailer or "left"
            del leaving[name], answers[name]
            answers[name + " left"] = speaker.answer
        for speaker in speakers:
            speaker.speak(steps)
        if engine.is_busy():
            engine._step({name.removesuffix(" left"): answer for name, answer in answers.items()})
        steps += 1
        assert steps < 6000, "it does not come to an end"
    assert engine.is_clean()
    return {name: answer for name, answer in answers.items() if not name.endswith(" left")}
