"""Bagpiper and OpusLM with three streams, row by row, as in ESPnet's delay pattern and inference.

`f0 f1 f2` are frames, and `P` is a stream's pad. Stream s is delayed by s rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from stretto.engine.columns import STATE, SlotLimits, SlotScales, SlotState
from stretto.engine.kernels.gpu.products import embed_rows
from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Arrays, DeviceArrays, HostArrays, SlotTables
from stretto.families.opuslm.family import PADDED_TAIL
from stretto.family.base import Family, Task
from stretto.family.text import SILENT
from stretto.records.chunk import Report
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import SAMPLED_TAIL, StreamLayout, Tail
from tests.small_vocabularies import BAGPIPER, DIALOGUE

CODES = 4  # of each codebook
REPORT = Report("stop", 1, 1, 1, 1, 1.0, 0, 0.0, None, 1.0)
ARRAYS = [HostArrays(), DeviceArrays(torch.device("cpu"))]


def three_streams(family: Family, layout: StreamLayout) -> Family:
    return replace(family, layout=layout, guided_streams=(), has_stream_bias=False)


EOS, EOT = 2, 3
PADS = (556, 561, 566)  # of Bagpiper's streams; its codes follow each
BAGPIPER_3 = three_streams(
    BAGPIPER,
    StreamLayout(
        vocab_size=571,
        audio=tuple(range(pad + 1, pad + 1 + CODES) for pad in PADS),
        delays=(0, 1, 2),
        codebook_streams=(0, 1, 2),
        extra=tuple((pad,) for pad in PADS),
    ),
)
SSL, FIRST, SECOND = 256, 276, 280  # OpusLM's semantic tokens and two codebooks
END, MARKER = DIALOGUE.end_of_audio, DIALOGUE.layout.extra[0][0]
OPUSLM_3 = three_streams(
    DIALOGUE,
    StreamLayout(
        vocab_size=432,
        audio=(range(SSL, 276), range(FIRST, SECOND), range(SECOND, SECOND + CODES)),
        delays=(0, 1, 2),
        codebook_streams=(1, 2),
        extra=((MARKER,), (0,), (0,)),
    ),
)


@dataclass
class Reply:
    """A reply in slot 0, advanced by the engine's step."""

    family: Family
    task: Task
    arrays: Arrays
    max_rows: int = 20
    num_prompt_rows: int = 3
    delayed_tail: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        rules = SegmentRules(self.family, 64)
        segment = SegmentSampling(temperature=0.0, max_rows=self.max_rows)
        sampling = SamplingConfig(text=segment, audio=segment, seed=0)
        self.state = ReplyState.begin(rules, self.task, self.num_prompt_rows)
        self.tables = SlotTables(1, rules, torch.device("cpu"))
        codes = np.zeros((self.num_prompt_rows, self.family.layout.num_input_streams - 1), np.int32)
        rows = np.zeros((self.num_prompt_rows, self.family.layout.num_input_streams), np.int32)
        tail = np.array(self.delayed_tail, np.int32).reshape(-1, codes.shape[1])
        self.tables.stage(0, Prompt(self.task.name, rows, sampling, delayed_tail=tail), self.state, codes)
        self.tables.apply_staged(self.arrays)
        self.machine = SegmentState(rules, self.arrays)
        self.utterance = Utterance(self.state, (), SILENT, Pacer(ChunkPolicy(1, 1)))
        self.was_cut = False
        self.frames: list[tuple[int, list[int]]] = []  # the row after which each left, counted from the first of audio

    def write(self, drawn: Sequence[int]) -> list[int]:
        """Append the row that results if the model samples `drawn`."""
        wrap, upload = self.arrays.wrap, self.arrays.upload
        state = SlotState(*wrap(self.tables.state)[upload(np.array([0]))].T)
        limits, scales = (
            SlotLimits(*upload(self.tables.limits.T)),
            SlotScales.from_columns(upload(self.tables.scales.T)),
        )
        rows = Rows(state, limits, scales, upload(np.array([0])), upload(np.array([self.state.position])))
        first, codes = upload(np.array(drawn[:1])), upload(np.array([drawn[1:]]))
        text, audio = self.machine.end_text(first, rows), self.machine.end_audio(first, rows)
        token = self.machine.choose(text, audio, rows)
        self.was_cut |= bool(rows.is_cut[0])
        forced = wrap(self.tables.codes)[rows.slots, rows.position]
        row = [int(token[0]), *self.machine.place_codes(codes, token, rows, forced)[0].tolist()]
        self.machine.advance(token, rows, bool(rows.in_text.any()))
        for column, name in enumerate(STATE):
            wrap(self.tables.state)[:, column] = getattr(rows.state, name)
        after = self.tables.state[0, self.tables.sent_columns].tolist()
        sent = row[: self.family.num_row_words]
        self._keep(self.utterance.push(np.array([[NO_CHANGE, *sent, *after]])))
        return row

    def end(self) -> None:
        self._keep([self.utterance.finish(REPORT)])

    def _keep(self, chunks: Any) -> None:
        for chunk in chunks:
            for frame in [] if chunk.codes is None else chunk.codes.T.tolist():
                self.frames.append((self.state.position - 1 - self.state.audio_start, frame))


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
def test_bagpiper_samples_pads_and_ends_with_an_end_of_reply_row(arrays: Arrays) -> None:
    p0, p1, p2 = PADS
    f = [[pad + 1 + frame for pad in PADS] for frame in range(3)]
    rows = [
        [f[0][0], p1, p2],
        [f[1][0], f[0][1], p2],
        [f[2][0], f[1][1], f[0][2]],
        [p0, f[2][1], f[1][2]],
        [p0, p1, f[2][2]],
    ]
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("speak"), arrays)
    assert [reply.write(row) for row in rows] == rows
    assert reply.write([EOS, f[0][1], f[0][2]]) == [BAGPIPER_3.end_of_reply, 0, 0]
    reply.end()
    assert reply.state.num_frames == len(rows) - 2
    assert reply.frames == [(2, [0, 0, 0]), (3, [1, 1, 1]), (4, [2, 2, 2])], "a frame leaves after row t + 2"


@pytest.mark.parametrize("num_rows", [1, 2])
def test_bagpiper_audio_shorter_than_a_frame_yields_no_frames(num_rows: int) -> None:
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("speak"), HostArrays(), max_rows=num_rows)
    row = [pad + 1 for pad in PADS]
    written = [reply.write(row) for _ in range(num_rows + 1)]
    reply.end()
    assert written == [row] * num_rows + [[BAGPIPER_3.end_of_reply, 0, 0]]
    assert (reply.state.num_frames, reply.frames, reply.was_cut) == (0, [], True)


def test_pad_in_a_frame_is_decoded_as_code_zero() -> None:
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("speak"), HostArrays())
    for _ in range(3):
        reply.write([PADS[0] + 3, PADS[1], PADS[2] + 4])
    assert reply.frames == [(2, [2, 0, 3])]


@pytest.mark.parametrize("stray", [PADS[0] + 2, PADS[2] + 1, PADS[2], 0, 300])
def test_invalid_frame_id_is_not_accepted_as_a_code(stray: int) -> None:
    """The ids are those of adjacent streams, the stream's pad, the text pad, and a word, each among complete rows."""
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("speak"), HostArrays())
    whole = [PADS[0] + 3, PADS[1] + 1, PADS[2] + 4]
    for row in (whole, whole, [whole[0], stray, whole[2]]):
        reply.write(row)
    with pytest.raises(AssertionError, match=rf"frame 1: id {stray} of stream 1 is not a code"):
        reply.write(whole)


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
@pytest.mark.parametrize("end", [EOS, EOT])
def test_bagpiper_caption_end_token_is_kept_before_the_audio_marker(arrays: Arrays, end: int) -> None:
    """`ParallelLLM.inference` samples either end token, feeds it, and continues with the requested modality."""
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("tts"), arrays)
    drawn = [PADS[0] + 1, PADS[1], PADS[2]]
    rows = [reply.write([token, *drawn[1:]]) for token in (300, end, drawn[0], drawn[0], drawn[0])]
    assert rows == [[300, 0, 0], [end, 0, 0], [6, 0, 0], [8, 0, 0], drawn]  # text <|end|> <|assistant|> <|audio|> audio
    assert (reply.state.num_text_tokens, reply.was_cut) == (1, False)


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
def test_bagpiper_audio_follows_a_truncated_caption_immediately(arrays: Arrays) -> None:
    """After `max_step` words, `ParallelLLM.inference_segment` feeds the last word, and <|assistant|> follows."""
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("tts"), arrays, max_rows=2)
    drawn = [PADS[0] + 1, PADS[1], PADS[2]]
    rows = [reply.write([token, *drawn[1:]]) for token in (300, 301, 302, 303, drawn[0])]
    assert rows == [[300, 0, 0], [301, 0, 0], [6, 0, 0], [8, 0, 0], drawn]
    assert (reply.state.num_text_tokens, reply.was_cut) == (2, True)


@pytest.mark.parametrize("end", [EOS, EOT])
def test_end_token_sampled_at_the_row_limit_is_not_a_cut(end: int) -> None:
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task("tts"), HostArrays(), max_rows=2)
    drawn = [PADS[0] + 1, PADS[1], PADS[2]]
    rows = [reply.write([token, *drawn[1:]]) for token in (300, 301, end, 303, 304, drawn[0], drawn[0], end)]
    assert [row[0] for row in rows] == [300, 301, end, 6, 8, drawn[0], drawn[0], BAGPIPER_3.end_of_reply]
    assert not reply.was_cut


@pytest.mark.parametrize("end", [EOS, EOT])
@pytest.mark.parametrize("task", ["chat", "speak"])
def test_either_end_token_closes_bagpiper_text_or_audio(task: str, end: int) -> None:
    reply = Reply(BAGPIPER_3, BAGPIPER_3.task(task), HostArrays())
    word = 300 if task == "chat" else PADS[0] + 1
    rows = [reply.write([token, PADS[1], PADS[2]]) for token in (word, word, end)]
    assert [row[0] for row in rows] == [word, word, BAGPIPER_3.end_of_reply]
    assert rows[-1][1:] == [0, 0]
    assert not reply.was_cut


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
def test_opuslm_pads_are_forced_and_two_rows_follow_the_audio_end(arrays: Arrays) -> None:
    s, f, g = [[start + frame for frame in range(4)] for start in (SSL, FIRST, SECOND)]
    reply = Reply(OPUSLM_3, OPUSLM_3.task("speak"), arrays)
    drawn = [[s[0], f[3], g[3]], [s[1], f[0], g[3]], [s[2], f[1], g[0]], [END, f[2], g[1]], [s[3], 0, g[2]]]
    rows = [reply.write(row) for row in drawn]
    assert rows == [[s[0], 0, 0], [s[1], f[0], 0], *drawn[2:]]
    assert reply.write([END, f[3], g[3]]) == [OPUSLM_3.end_of_reply, 0, g[3]], "row E + 2 is the last"
    reply.end()
    assert reply.state.num_frames == 3
    assert reply.frames == [(2, [0, 0]), (3, [1, 1]), (4, [2, 2])], "frames 0 … E - 1, each after row t + 2"


def as_espnet_closes(drawn: Sequence[Sequence[int]], maxlen: int = 1 << 20) -> list[list[int]]:
    """Return the rows that OpusLM's released loop, `ARDelayLM.inference` in step by step words, keeps of `drawn`.

    The loop detects the end one row late. Then streams 0 … j - 1 are pads in the j-th row after the end. If
    it sets the end itself, because only the rows are left in which the streams end, it detects that at once.
    """
    rows: list[list[int]] = []
    seen: int | None = None
    for step, row in enumerate(drawn):
        is_pad = [stream > step or (seen is not None and step - seen + 1 > stream) for stream in range(len(row))]
        if seen is None and rows and rows[-1][0] == END:
            seen = step
        rows.append([0 if pad else token for token, pad in zip(row, is_pad, strict=True)])
        if seen is None and step == maxlen - (len(row) - 1):
            rows[-1][0], seen = END, step
        if seen is not None and step - seen == len(row) - 2:
            break
    return rows


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
@pytest.mark.parametrize("end", [1, 4, 12])
@pytest.mark.parametrize("tail", [PADDED_TAIL, SAMPLED_TAIL])
def test_nine_stream_replies_close_like_the_espnet_loop(arrays: Arrays, end: int, tail: Tail) -> None:
    random = np.random.default_rng(end)
    audio = DIALOGUE.layout.audio
    drawn = np.stack([random.integers(ids.start, ids.stop, 30) for ids in audio], 1).tolist()
    drawn[end][0] = END
    expected = as_espnet_closes(drawn)
    if tail is SAMPLED_TAIL:  # as older versions of that loop, which only count the rows
        expected[end + 1 :] = [
            [token if stream <= step else 0 for stream, token in enumerate(row)]
            for step, row in enumerate(drawn[end + 1 : end + 9], end + 1)
        ]
    reply = Reply(replace(DIALOGUE, tail=tail), DIALOGUE.task("speak"), arrays)
    rows = [reply.write(row) for row in drawn[: end + 9]]
    assert [row[1:] for row in rows] == [row[1:] for row in expected]
    assert [row[0] for row in rows[:-1]] == [row[0] for row in expected[:-1]]
    assert rows[-1][0] == DIALOGUE.end_of_reply
    reply.end()
    codes = [[drawn[frame + s][s] - audio[s].start for s in range(1, 9)] for frame in range(end)]
    assert [frame for _, frame in reply.frames] == codes


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
@pytest.mark.parametrize("own_end", [None, 11, 12, 13])
def test_nine_stream_replies_end_at_a_limit_like_the_espnet_loop(arrays: Arrays, own_end: int | None) -> None:
    """`maxlen` 20 means 12 rows and eight more. The loop then drops its last complete frame, which is kept here."""
    random = np.random.default_rng(own_end)
    audio = DIALOGUE.layout.audio
    drawn = np.stack([random.integers(ids.start, ids.stop, 30) for ids in audio], 1).tolist()
    if own_end is not None:
        drawn[own_end][0] = END
    expected = as_espnet_closes(drawn, maxlen=20)
    num_frames = min(12, own_end or 12)
    assert [row[0] for row in expected].index(END) == num_frames
    reply = Reply(DIALOGUE, DIALOGUE.task("speak"), arrays, max_rows=12)
    rows = [reply.write(row) for row in drawn[: num_frames + 9]]
    assert [row[1:] for row in rows[: len(expected)]] == [row[1:] for row in expected]
    assert [row[0] for row in rows[:-1]] == [row[0] for row in expected[: num_frames + 8]]
    assert rows[-1][0] == DIALOGUE.end_of_reply
    reply.end()
    codes = [[drawn[frame + s][s] - audio[s].start for s in range(1, 9)] for frame in range(num_frames)]
    assert [frame for _, frame in reply.frames] == codes
    assert reply.was_cut == (own_end in (None, 13))


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
def test_audio_continuation_forces_the_delayed_tail(arrays: Arrays) -> None:
    """Rows equal those that ESPnet takes from the delayed suffix of its prefix, which has stream s until row s."""
    end = [[FIRST + 2, SECOND + 1], [0, SECOND + 2]]  # stream 1's last frame, stream 2's last two
    reply = Reply(OPUSLM_3, OPUSLM_3.task("speak"), arrays, delayed_tail=end)
    rows = [reply.write([SSL + i, FIRST, SECOND]) for i in range(4)]
    drawn = [FIRST, SECOND]
    assert [row[1:] for row in rows] == [end[0], [drawn[0], end[1][1]], drawn, drawn]
    assert reply.frames == [(2, [0, 0]), (3, [0, 0])]


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
def test_opuslm_dialogue_reads_pads_instead_of_the_text_end(arrays: Arrays) -> None:
    reply = Reply(OPUSLM_3, OPUSLM_3.task("dialogue"), arrays)
    tokens = [380, 381, END, *[SSL] * 10]
    rows = [reply.write([token, FIRST, SECOND]) for token in tokens]
    silent = [380, 381, *[0] * 8, 10, MARKER]
    assert rows == [*([token, 0, 0] for token in silent), [SSL, 0, 0]]
    assert reply.state.num_text_tokens == 2


def test_opuslm_text_only_reply_ends_at_the_text_end() -> None:
    reply = Reply(OPUSLM_3, OPUSLM_3.task("asr"), HostArrays())
    assert [reply.write([token, 0, 0])[0] for token in (380, END)] == [380, OPUSLM_3.end_of_reply]
    assert reply.state.num_text_tokens == 1


def test_text_row_embedding_adds_pads_only_if_pads_are_learned() -> None:
    table = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[2, 0, 0], [0, 0, 0], [3, 4, 0]])
    silent, learned = (embed_rows(table, ids, 0, is_silent) for is_silent in (True, False))
    assert torch.allclose(silent, torch.stack([table[2], table[0], table[3] + table[4]]))
    expected = torch.stack([table[2] + 2 * table[0], 3 * table[0], table[3] + table[4] + table[0]])
    assert torch.allclose(learned, expected)
