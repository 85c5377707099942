import numpy as np
import pytest

from stretto.decoder.sessions import Sessions
from stretto.errors import InvalidRequest, Overloaded
from stretto.records.sampling import OutputForm
from tests.fakes import FakeCodec

FORM = OutputForm()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_sessions(limit: int = 4) -> tuple[Sessions, Clock]:
    clock = Clock()
    return Sessions(FakeCodec(), limit, 10.0, clock), clock


def test_chunks_of_an_utterance_share_one_session() -> None:
    sessions, _ = make_sessions()
    first = sessions.advance("a", 0, FORM)
    assert sessions.advance("a", 1, FORM) is first
    assert sessions.advance("b", 0, FORM) is not first
    assert len(sessions) == 2


def test_spare_time_is_that_of_the_client_that_underruns_first() -> None:
    sessions, clock = make_sessions()
    assert sessions.spare_s() == 0.0, "nobody plays"
    for utterance, num_samples in (("a", 200), ("b", 100)):
        sessions.note_sent(sessions.advance(utterance, 0, FORM), num_samples)
    assert sessions.spare_s() == 1.0
    clock.now = 0.75
    assert sessions.spare_s() == 0.25
    clock.now = 1.5
    assert sessions.spare_s() == 0.0
    sessions.close("b")
    assert sessions.spare_s() == 0.5
    sessions.advance("c", 0, FORM)
    assert sessions.spare_s() == 0.0, "a client waits for its first audio"


@pytest.mark.parametrize(("indices", "wanted"), [([0, 2], 1), ([0, 0], 1), ([0, 1, 1], 2)])
def test_chunk_index_gap_or_repeat_is_refused(indices: list[int], wanted: int) -> None:
    sessions, _ = make_sessions()
    for index in indices[:-1]:
        sessions.advance("a", index, FORM)
    with pytest.raises(InvalidRequest, match=rf"chunk.index: expected {wanted}, got {indices[-1]}"):
        sessions.advance("a", indices[-1], FORM)


def test_only_chunk_0_opens_an_utterance() -> None:
    sessions, _ = make_sessions()
    with pytest.raises(InvalidRequest, match="not open, got 3"):
        sessions.advance("a", 3, FORM)
    sessions.advance("a", 0, FORM)
    sessions.close("a")
    with pytest.raises(InvalidRequest, match="not open, got 1"):
        sessions.advance("a", 1, FORM)
    sessions.close("never opened")


def test_more_utterances_than_the_limit_are_refused() -> None:
    sessions, _ = make_sessions(limit=2)
    sessions.advance("a", 0, FORM)
    sessions.advance("b", 0, FORM)
    with pytest.raises(Overloaded, match="2 utterances"):
        sessions.advance("c", 0, FORM)
    sessions.close("a")
    sessions.advance("c", 0, FORM)


def test_idle_utterance_expires_and_active_one_is_kept() -> None:
    sessions, clock = make_sessions()
    sessions.advance("idle", 0, FORM)
    sessions.advance("busy", 0, FORM)
    clock.now = 9.0
    sessions.advance("busy", 1, FORM)
    clock.now = 11.0
    assert sessions.expire() == ["idle"]
    assert len(sessions) == 1
    clock.now = 18.0
    sessions.keep_alive("busy")  # a client waits for it, although no data arrives
    sessions.keep_alive("idle")
    clock.now = 20.0
    assert sessions.expire() == []


def test_first_audible_sample_is_found_across_chunks() -> None:
    session = make_sessions()[0].advance("a", 0, FORM)
    session.render(np.zeros(5, dtype=np.float32), False)
    assert session.first_sound is None
    session.render(np.array([0.0, 0.001, -0.5, 0.0], dtype=np.float32), False)
    session.render(np.ones(3, dtype=np.float32), False)
    assert session.first_sound == 7
    assert session.num_samples == 12


def test_session_deadline_follows_sent_audio() -> None:
    sessions, clock = make_sessions()
    session = sessions.advance("a", 0, FORM)
    second = session.renderer.sample_rate
    clock.now = 3.0
    sessions.note_sent(session, 0)
    assert sessions.due_s(session) == 3.0  # a client without audio yet is waiting
    for at, sent, due_s, is_late in (
        (3.0, second, 4.0, False),
        (3.5, second // 2, 4.5, False),
        (6.0, second, 7.0, True),
        (6.5, second // 2, 7.5, False),
        (9.5, 0, 7.5, False),
    ):
        clock.now = at
        assert sessions.note_sent(session, sent) == is_late
        assert sessions.due_s(session) == pytest.approx(due_s)
