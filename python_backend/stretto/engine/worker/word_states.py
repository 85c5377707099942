"""State of the words that replies request (`WordScript`), in numpy or torch arrays; see `tracks.WordMachine`."""

from collections.abc import Callable

import torch

from stretto.engine.kernels.gpu.words import WordRules, words_kernel
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.tracks import WORD_STATE, Word
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto.families.base import WordScript


class WordStates:
    """State of the words in all slots, advanced by one row per call.

    Args:
        script: Rules of the words.
        rules: Rules of the family's replies.
        tables: Slot tables with the words, their state and the second stream.
        arrays: Array factory.
    """

    def __init__(self, script: WordScript, rules: SegmentRules, tables: SlotTables, arrays: Arrays):
        self._script, self._xp, self._arrays = script, arrays.xp, arrays
        self._end_of_audio, self._nothing = rules.family.end_of_audio, rules.family.layout.pad_id
        self._capacity, self._lane = rules.max_model_len, rules.family.track_streams.start - 1
        self._words, self._state = arrays.wrap(tables.words), arrays.wrap(tables.word_state)
        self._codes = arrays.wrap(tables.codes)

    def follow(self, token: Array, rows: Rows) -> Array:
        """Return stream 0 of each row, [B], and write the second stream to the slot tables.

        Args:
            token: Ids that the model sampled, [B].
            rows: State of the rows.
        """
        script, where = self._script, self._xp.where
        state = dict(zip(WORD_STATE, self._state[rows.slots].T, strict=True))
        is_waiting = (state["main_at"] < state["main_end"]) | (state["forced"] > 0)
        asks = rows.in_audio & ~is_waiting & ((token == script.new_id) | (state["remaining"] <= 0))
        takes = asks & (state["taken"] < rows.limits.given_total)
        begins = self._take(state, takes, rows.slots)
        ends = asks & ~takes & (state["end"] < 0)
        state["end"] = where(ends, rows.position, state["end"])
        marks = begins | ends if script.ahead else begins
        for name in ("remaining", "forced"):
            state[name] = where(marks, state[name], self._xp.clip(state[name] - 1, 0, None))
        has_main = state["main_at"] < state["main_end"]
        if not script.ahead:
            has_main = has_main & ~marks  # the first token follows in the next row
        main = where(has_main, self._word(rows.slots, state["main_at"]), where(asks, script.wish_id, script.pad_id))
        state["main_at"] = state["main_at"] + has_main
        if not script.ahead:
            main = where(marks, script.new_id, main)
        second = main * 0 + self._nothing
        if script.ahead:
            skips = has_main & ~marks & (main == script.new_id)
            has_main = skips & (state["main_at"] < state["main_end"])
            main = where(has_main, self._word(rows.slots, state["main_at"]), where(skips, script.pad_id, main))
            state["main_at"], marks = state["main_at"] + has_main, marks | skips
            has_second = ~marks & (state["second_at"] < state["second_end"])
            shown = where(marks, script.new_id, self._word(rows.slots, state["second_at"]))
            second = where(marks | has_second, script.second_base + shown, second)
            state["second_at"] = state["second_at"] + has_second
        self._state[rows.slots] = self._xp.stack([state[name] for name in WORD_STATE], 1)
        self._codes[rows.slots, rows.position, self._lane] = self._arrays.int32(second)
        is_over = rows.in_audio & (state["end"] >= 0) & (rows.position - state["end"] >= script.tail_rows)
        return where(is_over, self._end_of_audio, main)

    def _word(self, slots: Array, places: Array) -> Array:
        """Return the entries of the word tables at `places`, [B]; any for places outside the table."""
        return self._words[slots, self._xp.clip(places, 0, self._words.shape[1] - 1)]

    def _take(self, state: dict[str, Array], takes: Array, slots: Array) -> Array:
        """Take the next word in rows where `takes` is True; return True for rows where a word with tokens begins."""
        where, first = self._xp.where, self._capacity + len(Word._fields) * state["taken"]
        end, padding, ahead_start, ahead_end = (self._word(slots, first + at) for at in range(len(Word._fields)))
        begins = takes & (end > state["main_end"])
        state["forced"] = where(takes, padding, state["forced"])
        state["taken"] = state["taken"] + takes
        state["main_end"] = where(begins, end, state["main_end"])
        state["remaining"] = where(begins, self._script.max_padding, state["remaining"])
        extends = begins & (ahead_end > ahead_start)
        is_empty = state["second_at"] == state["second_end"]
        state["second_at"] = where(extends & is_empty, ahead_start, state["second_at"])
        state["second_end"] = where(extends, ahead_end, state["second_end"])
        return begins


class WordLaunch:
    """Launch of `words_kernel`, which does for the rows of a step what `WordStates` does.

    Args:
        rules: Rules of the family's replies.
        tables: Slot tables with the words, their state and the second stream.
        num_rows: Maximum number of rows in a step.
    """

    def __init__(self, rules: SegmentRules, tables: SlotTables, num_rows: int):
        family, script = rules.family, rules.family.word_script
        assert script is not None, "only families with words that the model asks for"
        self._tables = tables
        self._rules = WordRules(
            num_rows=num_rows,
            capacity=rules.max_model_len,
            lane=family.track_streams.start - 1,
            nothing=family.layout.pad_id,
            new_id=script.new_id,
            pad_id=script.pad_id,
            wish_id=script.wish_id,
            ahead=script.ahead,
            second_base=script.second_base,
            max_padding=script.max_padding,
            tail_rows=script.tail_rows,
            end_of_audio=family.end_of_audio,
            state_stride=tables.state.stride(0),
            words_stride=tables.words.stride(0),
            word_state_stride=tables.word_state.stride(0),
            codes_stride=tables.codes.stride(0),
            num_others=family.layout.num_input_streams - 1,
        )

    def __call__(
        self,
        drawn: torch.Tensor,
        plan: torch.Tensor,
        lengths: torch.Tensor,
        num_rows: int,
        seconds: torch.Tensor | None = None,
    ) -> None:
        """Replace the sampled ids of stream 0 with the ids that the rows must contain.

        Args:
            drawn: Sampled ids, int32 [N, 1], written.
            plan: Step table (`step_draw.py`).
            lengths: Positions of the rows, int32 [N].
            num_rows: Number of rows of the step.
            seconds: Ids of the second stream, int32 [N], written; None if nothing reads them in the step.
        """
        tables = self._tables
        words_kernel[num_rows,](
            drawn, seconds, tables.word_state, tables.words, tables.codes, tables.state, plan, lengths, self._rules,
            num_warps=1,
        )  # fmt: skip


def no_words(*_: object) -> None:
    """Do nothing, in place of a `WordLaunch`, for families without such words."""


def word_launch(rules: SegmentRules, tables: SlotTables, num_rows: int) -> Callable[..., None]:
    """Return a `WordLaunch` with these arguments, or `no_words` if the family has no such words."""
    return WordLaunch(rules, tables, num_rows) if rules.family.word_script else no_words
