"""Words that replies request (`WordScript`): state in numpy or torch arrays, and launch of the kernel for it."""

import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto_kyutai.kyutai_tts.mechanism import rules as word_rules
from stretto_kyutai.kyutai_tts.mechanism.kernel import WordRules, words_kernel
from stretto_kyutai.kyutai_tts.mechanism.script import NUM_FIELDS, WordScript


class WordStates:
    """State of the words in all slots, advanced by one row per call."""

    def __init__(self, script: WordScript, rules: SegmentRules, tables: SlotTables, arrays: Arrays):
        self._script = script
        self._xp = arrays.xp
        self._arrays = arrays
        self._common = arrays.rules
        self._rules = with_where(arrays.xp.where, word_rules.__name__)
        self._end_of_audio = rules.family.end_of_audio
        self._nothing = rules.family.layout.pad_id
        self._capacity = rules.max_model_len
        self._lane = rules.family.track_streams.start - 1
        self._words = arrays.wrap(tables.texts)
        self._state = arrays.wrap(tables.state)[:, len(STATE) :]
        self._codes = arrays.wrap(tables.codes)

    def __call__(self, token: Array, rows: Rows) -> Array:
        """Return stream 0 of each row, [B], and write the second stream to the slot tables."""
        script = self._script
        slots = rows.slots
        position = rows.position
        remaining, forced, main_at, main_end, second_at, second_end, taken, end = self._state[slots].T
        asks, takes = self._rules.ask_for_word(
            token, rows.in_audio, remaining, forced, main_at, main_end, taken, rows.limits.track_total, script
        )
        first = self._capacity + NUM_FIELDS * taken
        word = (self._word(slots, first + at) for at in range(NUM_FIELDS))
        remaining, forced, main_end, second_at, second_end, taken, end, marks = self._rules.take_word(
            asks, takes, *word, position, remaining, forced, main_end, second_at, second_end, taken, end, script
        )
        main_token = self._word(slots, main_at)
        places = (main_at + 1, second_at) if script.ahead else ()
        others = [self._word(slots, offset) for offset in places] or (main_token, main_token)
        main, second, main_at, second_at = self._rules.word_ids(
            asks, marks, main_token, *others, main_at, main_end, second_at, second_end, self._nothing, script
        )
        state = remaining, forced, main_at, main_end, second_at, second_end, taken, end
        self._state[slots] = self._xp.stack(state, 1)
        self._codes[slots, position, self._lane] = self._arrays.int32(second)
        is_over = self._common.is_after_end(rows.in_audio, position, end, script.tail_rows)
        return self._xp.where(is_over, self._end_of_audio, main)

    def _word(self, slots: Array, places: Array) -> Array:
        """Return the entries of the word tables at the indices `places`, [B], or any entry for an index outside."""
        return self._words[slots, self._xp.clip(places, 0, self._words.shape[1] - 1)]


class WordLaunch:
    """Launch of `words_kernel`, which does for the rows of a step what `WordStates` does."""

    def __init__(self, script: WordScript, rules: SegmentRules, tables: SlotTables, num_rows: int):
        family = rules.family
        self._tables = tables
        self._rules = WordRules(
            script=script,
            num_rows=num_rows,
            capacity=rules.max_model_len,
            lane=family.track_streams.start - 1,
            nothing=family.layout.pad_id,
            end_of_audio=family.end_of_audio,
            state_stride=tables.state.stride(0),
            words_stride=tables.texts.stride(0),
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
        """Replace sampled ids of stream 0, int32 [N, 1], with the ids that the rows must contain.

        Args:
            plan: Step table (`step_draw.py`).
            lengths: Positions of the rows, int32 [N].
            seconds: Ids of the second stream, int32 [N], written; None if nothing reads them in the step.
        """
        tables = self._tables
        words_kernel[num_rows,](
            drawn, seconds, tables.texts, tables.codes, tables.state, plan, lengths, self._rules, num_warps=1
        )
