"""Rows become chunks with all codes once and in order, and with words at the frames where they begin."""

import math
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from lab.releases.random_espnet import write_tokenizer
from stretto.engine.protocol import GUIDANCE_OFF, GUIDANCE_ON, NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance, reference_chunk
from stretto.errors import StrettoError
from stretto.families.tiny.family import (
    BEGIN_AUDIO,
    END_OF_AUDIO,
    END_OF_REPLY,
    END_OF_TEXT,
    FIRST_CHARACTER,
    FIRST_FRAME_TOKEN,
    FIRST_PHONEME,
    PAD,
    PHONEMES,
    TINY,
)
from stretto.families.tiny.prompt import TEXT_CODEC
from stretto.family.base import Family
from stretto.family.text import SILENT, TextTokenizer, load_text_codec
from stretto.records.chunk import CUT_S, Alignment, Chunk, GuidanceChange, LMChunk, Report, WordMark, last_chunks
from stretto.records.prompt import Prompt, SourceWord
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment, StreamLayout, delay_codes, words_of
from tests.reply_rows import chunks_in
from tests.small_vocabularies import BAGPIPER, CSM
from tests.speech_families import EIGHT_STREAMS, LATENTS, THREE_ROWS

REPORT = Report("stop", 3, 1, 1, 1, 1.5, 0, 0.0, None, 1.0)
SPOKEN = "pau _ k ae t _ s ih t _ pau".split()
FRAMES_PER_ENTRY = 3
POLICY = ChunkPolicy(4, 25)


def utterance(
    words: tuple[str, ...],
    policy: ChunkPolicy = POLICY,
    frame_s: float = 0.02,
    with_codes: bool = False,
    sources: tuple[SourceWord, ...] = (),
) -> Utterance:
    """Return an utterance whose frames arrive every `frame_s` seconds and last 0.04 s."""
    family, now = TINY, count()
    task = family.task("tts")
    reply_state = ReplyState.begin(SegmentRules(family, 1024), task, 3)
    pacer = Pacer(policy, clock=lambda: frame_s * next(now))
    return Utterance(reply_state, words, TEXT_CODEC, pacer, with_codes, sources=sources)


def test_every_chunk_has_the_codec_voice_number() -> None:
    task, rules = CSM.task("tts"), SegmentRules(CSM, 512)
    speaker = Utterance(ReplyState.begin(rules, task, 9), (), SILENT, Pacer(ChunkPolicy(1, 1)))
    speaker.voice = 3
    rows = np.array([[NO_CHANGE, *(ids.start for ids in CSM.layout.audio)]], np.int32)
    assert [item.chunk.voice for item in chunks_in(speaker, rows)] == [3]
    assert speaker.finish(REPORT).chunk.voice == 3


def test_reference_frames_are_sent_before_the_continuation() -> None:
    task, rules = CSM.task("tts"), SegmentRules(CSM, 512)
    speaker = Utterance(ReplyState.begin(rules, task, 9), (), SILENT, Pacer(ChunkPolicy(1, 1)), with_codes=True)
    codes = np.random.default_rng(0).integers(0, 8, (6, 5))
    rows = (codes + np.array([[ids.start] for ids in CSM.layout.audio])).T.astype(np.int32)
    opening = reference_chunk(Prompt("tts", rows[:3], CSM.tasks[0].sampling, num_reference_rows=3), CSM.layout)
    speaker.num_chunks = 1
    assert opening.chunk == Chunk(0, Segment.AUDIO, num_reference_frames=3)
    assert opening.codes is not None
    assert opening.codes.dtype == np.int32
    np.testing.assert_array_equal(opening.codes, codes[:, :3])
    marked = np.concatenate([np.full((2, 1), NO_CHANGE), rows[3:]], 1)
    told = list(chunks_in(speaker, marked))
    assert [chunk.chunk.index for chunk in told] == [1, 2]
    heard = [chunk.codes for chunk in told if chunk.codes is not None]
    np.testing.assert_array_equal(np.concatenate(heard, 1), codes[:, 3:])
    assert all(chunk.chunk.num_reference_frames == 0 for chunk in told)


def test_reference_chunk_takes_delayed_codes_from_later_rows() -> None:
    """Rows 0 and 1 are prompt; with a delay of 2 rows, stream 2 carries frame 1 in row 3."""
    layout = StreamLayout(40, (range(10), range(10, 20), range(20, 30)), (0, 1, 2), (1, 2), pad_id=39)
    rows, tail = np.array([[5, 10, 20], [6, 11, 21]], np.int32), np.array([[12, 22], [13, 23]], np.int32)
    prompt = Prompt("tts", rows, CSM.tasks[0].sampling, delayed_tail=tail, num_reference_rows=2)
    opening = reference_chunk(prompt, layout)
    assert opening.codes is not None
    assert opening.codes.tolist() == [[1, 2], [2, 3]]


def reply(num_frames: int | None = None) -> tuple[list[list[int]], np.ndarray]:
    """Return the rows of a reply that speaks SPOKEN, with three frames per entry, and its codes [7, T]."""
    text = [FIRST_CHARACTER if name == "_" else FIRST_PHONEME + PHONEMES.index(name) for name in SPOKEN]
    rows = [[token] + [PAD] * 7 for token in [*text, END_OF_TEXT, BEGIN_AUDIO]]
    entries = [token - FIRST_PHONEME for token in text if token >= FIRST_PHONEME]
    first = [FIRST_FRAME_TOKEN + 2 * e + (f > 0) for e in entries for f in range(FRAMES_PER_ENTRY)][:num_frames]
    codes = np.random.default_rng(0).integers(0, 256, (7, len(first)))
    ids = codes + np.array([ids.start for ids in TINY.layout.audio[1:]])[:, None]
    others = delay_codes(ids, TINY.layout.delays[1:], PAD)
    drain = [END_OF_AUDIO, *[PAD] * (len(others) - len(first) - 2), END_OF_REPLY]
    rows += [[token, *row] for token, row in zip([*first, *drain], others.tolist(), strict=True)]
    return rows, codes


def parted(rows: list[list[int]], together: int = 1, changes: dict[int, int] | None = None) -> list[np.ndarray]:
    """Return rows as the engine outputs them, in groups of `together`; `changes` are guidance marks by row."""
    marked = np.array([[(changes or {}).get(index, NO_CHANGE), *row] for index, row in enumerate(rows)])
    return np.split(marked, range(together, len(rows), together))


def chunks_of(
    rows: list[list[int]], words: tuple[str, ...] = (), with_codes: bool = False, together: int = 1
) -> list[LMChunk]:
    speaker = utterance(words, with_codes=with_codes)
    chunks = [chunk for part in parted(rows, together) for chunk in chunks_in(speaker, part)]
    return [*chunks, speaker.finish(REPORT)]


@pytest.mark.parametrize("together", [1, 3, 100])
@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 12, 24])
def test_all_codes_are_sent_once_and_in_order(num_frames: int, together: int) -> None:
    rows, codes = reply(num_frames)
    chunks = chunks_of(rows, together=together)
    sent = [chunk.codes for chunk in chunks if chunk.codes is not None]
    assert np.array_equal(np.concatenate(sent, 1), codes)
    assert [chunk.chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].chunk.report == REPORT


def test_requested_output_codes_include_all_streams() -> None:
    rows, codes = reply(10)
    chunks = chunks_of(rows, with_codes=True)
    told = np.concatenate([np.array(chunk.chunk.output_codes) for chunk in chunks if chunk.codes is not None], 1)
    assert np.array_equal(told[1:], codes)
    first = len(SPOKEN) + 2
    assert told[0].tolist() == [row[0] - FIRST_FRAME_TOKEN for row in rows[first : first + 10]]
    assert np.array_equal(np.concatenate([chunk.codes for chunk in chunks if chunk.codes is not None], 1), codes)
    assert not any(chunk.chunk.output_codes for chunk in chunks_of(rows))


def test_chunks_grow_with_the_playback_lead() -> None:
    rows, _ = reply()
    sizes = [chunk.codes.shape[1] for chunk in chunks_of(rows) if chunk.codes is not None]
    assert sizes == [4, 4, 8, 8]  # the last part is the remainder


def test_first_chunk_is_sent_with_the_row_that_completes_it() -> None:
    rows, _ = reply()
    speaker = utterance(())
    text_rows = len(SPOKEN) + 2
    for index, row in enumerate(parted(rows)):
        sent = [chunk for chunk in chunks_in(speaker, row) if chunk.codes is not None]
        if sent:
            assert index + 1 == text_rows + TINY.first_chunk_frames + TINY.layout.max_delay
            return
    raise AssertionError("no chunk before the end")


def test_text_is_streamed_word_by_word_before_the_audio() -> None:
    rows, _ = reply()
    texts = [(chunk.chunk.segment, chunk.chunk.text) for chunk in chunks_of(rows) if chunk.chunk.text]
    assert texts == [(Segment.TEXT, text) for text in (",", " k-ae-t", " s-ih-t", " ,")]


def test_text_of_rows_pushed_together_is_one_chunk() -> None:
    rows, _ = reply()
    chunks = chunks_of(rows, ("cat", "sit"), together=len(rows))
    assert [chunk.chunk.text for chunk in chunks if chunk.chunk.text] == [", k-ae-t s-ih-t ,"]
    marks = [mark for chunk in chunks for mark in chunk.chunk.marks]
    assert marks == [WordMark(None, 0), WordMark("cat", 3), WordMark("sit", 12), WordMark(None, 21)]


@pytest.mark.parametrize("together", [2, 5, 100])
def test_deterministic_chunks_are_independent_of_row_grouping(together: int) -> None:
    rows, _ = reply()

    def said(together: int) -> list[tuple[Chunk, list[list[int]] | None]]:
        speaker = utterance((), replace(POLICY, deterministic=True))
        chunks = [chunk for part in parted(rows, together) for chunk in chunks_in(speaker, part)]
        return [(each.chunk, None if each.codes is None else each.codes.tolist()) for each in chunks]

    assert said(together) == said(1)


@pytest.mark.parametrize("task", ["chat", "generate"])
def test_subwords_stream_singly_and_incomplete_characters_at_the_end(task: str, tmp_path: Path) -> None:
    tokenizer = TextTokenizer.at(write_tokenizer(tmp_path, 300))
    rules = SegmentRules(BAGPIPER, 1024)
    reply_state = ReplyState.begin(rules, BAGPIPER.task(task), 3)
    codec = load_text_codec(BAGPIPER, tmp_path)
    speaker = Utterance(reply_state, (), codec, Pacer(POLICY))
    said = [*tokenizer.encode("owl"), *tokenizer.encode("中")[:1]]
    ids = [BAGPIPER.subwords.start + token_id for token_id in said] + [next(iter(rules.closings(reply_state.task)))]
    texts = [
        chunk.chunk.text
        for part in parted([[token_id] + [PAD] * 7 for token_id in ids])
        for chunk in chunks_in(speaker, part)
    ]
    assert "".join(texts) == "owl\ufffd"
    assert len(texts) == len(said), "one for each token of the word, and one for what the end cut off"


def test_word_marks_are_at_word_starts() -> None:
    rows, _ = reply()
    chunks = chunks_of(rows, ("cat", "sit"))
    marks = [mark for chunk in chunks for mark in chunk.chunk.marks]
    assert marks == [WordMark(None, 0), WordMark("cat", 3), WordMark("sit", 12), WordMark(None, 21)]
    sent = 0
    for chunk in chunks:
        start, sent = sent, sent + (0 if chunk.codes is None else chunk.codes.shape[1])
        assert all(start <= mark.frame < sent for mark in chunk.chunk.marks)


@pytest.mark.parametrize(
    ("words", "timed"),
    [(("the", "cat", "sit"), ["cat", "sit"]), (("cat", "sit", "down"), ["cat", "sit"]), (("cat",), ["cat"]), ((), [])],
)
def test_words_that_the_model_has_skipped_have_no_mark(words: tuple[str, ...], timed: list[str]) -> None:
    rows, _ = reply()
    assert [mark.word for chunk in chunks_of(rows, words) for mark in chunk.chunk.marks if mark.word] == timed


def test_words_are_marked_as_in_the_text() -> None:
    """A word of the text that is spoken as several words has one mark; words without a mark are listed."""
    rows, _ = reply()
    cat, sat, down = SourceWord("Cat,", 0, 4), SourceWord("sat", 5, 8), SourceWord("down", 9, 13)
    for words, sources, marks, untimed in (
        (("cat", "sit"), (cat, sat), [cat, sat], ()),
        (("cat", "sit"), (cat, cat), [cat], ()),
        (("cat", "sit", "down"), (cat, sat, down), [cat, sat], ("down",)),
        (("the", "cat", "sit"), (cat, cat, sat), [cat, sat], ()),
    ):
        speaker = utterance(words, sources=sources)
        chunks = [chunk for part in parted(rows) for chunk in chunks_in(speaker, part)]
        chunks.append(speaker.finish(REPORT))
        found = [(mark.word, mark.place) for chunk in chunks for mark in chunk.chunk.marks if mark.word]
        assert found == [(source.word, (source.start, source.end)) for source in marks]
        assert speaker.words.untimed == untimed
    assert utterance(("cat", "sit"), sources=(cat, sat)).words.untimed == ("Cat,", "sat")
    assert utterance(("cat", "sit")).words.untimed == ("cat", "sit")


def test_chunk_sizes_follow_the_chunk_policy() -> None:
    rows, _ = reply()
    speaker = utterance((), ChunkPolicy(1, 2), frame_s=0.001)
    chunks = [*(chunk for row in parted(rows) for chunk in chunks_in(speaker, row)), speaker.finish(REPORT)]
    sizes = [chunk.codes.shape[1] for chunk in chunks if chunk.codes is not None]
    assert sizes == [1, *[2] * 11, 1]


@pytest.mark.parametrize("together", [1, 7, 100])
def test_times_do_not_count_silent_frames(together: int) -> None:
    """All codes are sent, because the decoder's state depends on them; the first chunk with codes names the silence."""
    rows, codes = reply()
    text_rows = len(SPOKEN) + 2
    speaker = utterance(("cat", "sit"), replace(POLICY, silent_frames=4))
    changes = {text_rows + 2: GUIDANCE_OFF, text_rows + 20: GUIDANCE_ON}
    chunks = [chunk for part in parted(rows, together, changes) for chunk in chunks_in(speaker, part)]
    chunks.append(speaker.finish(REPORT))
    sent = [chunk for chunk in chunks if chunk.codes is not None]
    assert np.array_equal(np.concatenate([chunk.codes for chunk in sent if chunk.codes is not None], 1), codes)
    assert [chunk.chunk.num_silent_frames for chunk in sent] == [4] + [0] * (len(sent) - 1)
    assert not any(chunk.chunk.num_silent_frames for chunk in chunks if chunk.codes is None)
    marks = [mark for chunk in chunks for mark in chunk.chunk.marks]
    assert marks == [WordMark(None, 0), WordMark("cat", 0), WordMark("sit", 8), WordMark(None, 17)]
    told = [change for chunk in chunks for change in chunk.chunk.guidance_changes]
    assert told == [GuidanceChange(0, False), GuidanceChange(16, True)]
    assert speaker.guidance_changes == [GuidanceChange(2, False), GuidanceChange(20, True)], "as in the report"


@pytest.mark.parametrize("with_codes", [False, True])
@pytest.mark.parametrize(("num_frames", "is_used"), [(4, True), (2, False), (8, False)])
def test_first_chunk_has_the_samples_of_its_codes(with_codes: bool, num_frames: int, is_used: bool) -> None:
    """Samples of more or fewer frames are dropped. All later chunks are decoded by the decoder alone."""
    rows, codes = reply()
    speaker = utterance((), with_codes=with_codes)
    samples = np.array([0.25, -0.5, 0.125], np.float32)
    speaker.early = np.concatenate([codes[:, :num_frames].ravel(), samples]).astype(np.float32)
    chunks = [chunk for part in parted(rows) for chunk in chunks_in(speaker, part)]
    sent = [chunk.chunk.samples for chunk in chunks if chunk.codes is not None]
    assert sent == [samples.tobytes() if is_used else b""] + [b""] * (len(sent) - 1)


@pytest.mark.parametrize("together", [1, 7])
def test_guidance_changes_are_sent_with_their_frame(together: int) -> None:
    rows, _ = reply()
    speaker = utterance(())
    text_rows = len(SPOKEN) + 2
    changes = {text_rows + 5: GUIDANCE_OFF, text_rows + 20: GUIDANCE_ON, len(rows) - 2: GUIDANCE_OFF}
    chunks = [chunk for part in parted(rows, together, changes) for chunk in chunks_in(speaker, part)]
    chunks.append(speaker.finish(REPORT))
    in_drain = GuidanceChange(len(rows) - 2 - text_rows, False)
    assert speaker.guidance_changes == [GuidanceChange(5, False), GuidanceChange(20, True), in_drain]
    assert [change for chunk in chunks for change in chunk.chunk.guidance_changes] == speaker.guidance_changes
    sent = 0
    for chunk in chunks[:-1]:
        start, sent = sent, sent + (0 if chunk.codes is None else chunk.codes.shape[1])
        assert all(start <= change.frame < sent for change in chunk.chunk.guidance_changes)


@pytest.mark.parametrize("together", [1, 2, 100])
@pytest.mark.parametrize("num_left_over", [0, 1, 2])
def test_incomplete_trailing_frames_are_dropped(together: int, num_left_over: int) -> None:
    """There are three rows per frame and two frames per chunk. A limit ends replies up to two rows after a frame."""
    places, end = THREE_ROWS.layout.frame_codec.places, THREE_ROWS.end_of_audio
    expected = np.random.default_rng(0).integers(0, 16, (3, 7))
    ids = [ids.start + code for frame in expected.T for ids, code in zip(places, frame, strict=True)]
    ids += [places[place].start for place in range(num_left_over)] + [end]
    policy = ChunkPolicy(2, 2, deterministic=True)
    reply_state = ReplyState.begin(SegmentRules(THREE_ROWS, 512), THREE_ROWS.task("speak"), 9)
    speaker = Utterance(reply_state, (), SILENT, Pacer(policy), with_codes=True)
    rows, chunks = np.array([[NO_CHANGE, token] for token in ids], np.int32), list[LMChunk]()
    for first in range(0, len(rows), together):
        chunks += chunks_in(speaker, rows[first : first + together])
    chunks.append(speaker.finish(REPORT))
    sizes = [chunk.codes.shape[1] for chunk in chunks if chunk.codes is not None]
    assert (sizes, reply_state.num_frames) == ([2, 2, 2, 1], 7)
    heard = [chunk.codes for chunk in chunks if chunk.codes is not None]
    assert np.array_equal(np.concatenate(heard, 1), expected)
    told = [np.array(chunk.chunk.output_codes) for chunk in chunks if chunk.codes is not None]
    assert np.array_equal(np.concatenate(told, 1), expected)


@pytest.mark.parametrize("family", [CSM, THREE_ROWS, EIGHT_STREAMS], ids=lambda family: family.name)
@pytest.mark.parametrize(
    "policy", [ChunkPolicy(1, 1), ChunkPolicy(2, 4, deterministic=True), ChunkPolicy(1, 1, held_frames=1)]
)
@pytest.mark.parametrize("limit", [11, 12, None])
def test_last_frames_that_fit_are_in_the_last_chunk(family: Family, policy: ChunkPolicy, limit: int | None) -> None:
    """The decoder looks for a pause in them if the limit ended the reply, not if the model ended it in that row."""
    layout, num_frames, num_tail = family.layout, 11, family.tail.num_rows(family.layout.max_delay)
    places = layout.frame_codec.places
    codes = np.array(
        [[ids.start for ids in places or layout.audio]] * (num_frames if places else num_frames + num_tail)
    )
    rows = codes.reshape(-1, 1) if places else codes[: num_frames + num_tail]
    audio = rows[: num_frames * family.rows_per_frame]
    end = np.where(np.arange(rows.shape[1]) == 0, family.end_of_audio, rows[-1])
    tail = [end] * (num_tail + 1)
    reply_state = ReplyState.begin(SegmentRules(family, 512), family.task("speak"), 9)
    if limit is not None:
        reply_state.max_audio_rows = limit * family.rows_per_frame + reply_state.rules.num_closing_rows
    speaker = Utterance(reply_state, (), SILENT, Pacer(policy, clock=count().__next__))
    chunks = [chunk for row in [*audio, *tail] for chunk in chunks_in(speaker, np.array([[NO_CHANGE, *row]], np.int32))]
    last = speaker.finish(replace(REPORT, finish_reason="stop" if limit is None else "length"))
    sizes = [0 if chunk.codes is None else chunk.codes.shape[1] for chunk in [*chunks, last]]
    assert (sum(sizes), reply_state.num_frames) == (num_frames, num_frames)
    num_near = min(math.ceil(CUT_S * family.frame_rate), policy.steady_frames)
    assert last.chunk.num_cut_frames == (num_near if limit == num_frames else 0)
    assert not any(chunk.chunk.num_cut_frames for chunk in chunks)
    if limit == num_frames:
        assert sizes[-1] >= min(num_near, num_frames)
    if limit is None and policy.steady_frames == 1:
        assert sizes[-1] <= policy.held_frames
    assert [each.chunk.num_cut_frames for each in last_chunks(last)] == [last.chunk.num_cut_frames, 0]


def test_reference_latents_are_sent_as_int32_words() -> None:
    words = words_of(np.array([[0.25, -0.0, 1e-40, 3.0] * 2, [-1.5, 0.0, 3e38, -7.0] * 2]))
    rows = np.concatenate([np.full((2, 1), LATENTS.layout.audio[0].start), words], 1).astype(np.int32)
    opening = reference_chunk(Prompt("tts", rows, CSM.tasks[0].sampling, num_reference_rows=2), LATENTS.layout)
    assert opening.chunk.num_reference_frames == 2
    assert opening.codes is not None
    assert opening.codes.tolist() == words.T.tolist()


@pytest.mark.parametrize("number", [0.25, -0.0, np.nan, np.inf])
def test_generated_latents_pass_as_int32_words_and_must_be_finite(number: float) -> None:
    frame = LATENTS.layout.audio[0].start
    words = words_of(np.full((1, 8), number))
    reply_state = ReplyState.begin(SegmentRules(LATENTS, 512), LATENTS.tasks[0], 9)
    speaker = Utterance(reply_state, (), SILENT, Pacer(ChunkPolicy(1, 1)))
    rows = np.concatenate([[[NO_CHANGE, frame]], words], 1)
    if not np.isfinite(number):
        with pytest.raises(StrettoError, match="frames 0 to 0: expected finite latents, got NaN or infinity"):
            list(chunks_in(speaker, rows))
        return
    (item,) = chunks_in(speaker, rows)
    assert item.codes is not None
    assert item.codes.dtype == np.int32
    assert item.codes.tolist() == words.T.tolist()


@pytest.mark.parametrize("has_rows", [True, False])
def test_alignment_request_is_sent_with_only_the_first_chunk(has_rows: bool) -> None:
    speaker = utterance(())
    speaker.alignment = Alignment("a cat")
    rows, _ = reply()
    made = [chunk for part in (parted(rows) if has_rows else []) for chunk in chunks_in(speaker, part)]
    made.append(speaker.finish(REPORT))
    assert [each.chunk.alignment for each in made] == [Alignment("a cat"), *[None] * (len(made) - 1)]


def test_last_chunk_is_split_into_samples_and_end() -> None:
    codes = np.ones((3, 2), np.int32)
    last = Chunk(7, Segment.TAIL, "a", (WordMark("a", 3),), True, REPORT, (GuidanceChange(3, False),), voice=2)
    sound, end = last_chunks(LMChunk(last, codes))
    assert sound.codes is codes
    assert sound.chunk == replace(last, is_final=False, report=None, ends_audio=True)
    assert end == LMChunk(Chunk(8, Segment.TAIL, is_final=True, report=REPORT, voice=2), None)
    assert (sound.chunk.flushes, end.chunk.flushes, Chunk(0, Segment.AUDIO).flushes) == (True, True, False)
