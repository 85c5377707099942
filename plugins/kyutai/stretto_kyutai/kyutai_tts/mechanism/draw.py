"""Sampling of rows whose words the model requests, in arrays and in kernels."""

from typing import Any

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.sampler import RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto.engine.worker.step_program import StepProgram
from stretto_kyutai.kyutai_tts.mechanism.arrays import WordLaunch, WordStates
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript


class WordDraw(RowDraw):
    """Sampler in numpy or torch that writes the tokens of words to stream 0."""

    def __init__(self, script: WordScript, *arguments: Any):
        super().__init__(*arguments)
        self._states = WordStates(script, self.segments.rules, self.tables, self.arrays)

    def replace_first(self, token: Array, rows: Rows) -> Array:
        return self._states(token, rows)


class WordProgram(StepProgram):
    """`WordDraw` on a GPU: kernels that sample the rows of a step and write the tokens of words to stream 0."""

    def __init__(self, script: WordScript, readout: Readout, rules: SegmentRules, *arguments: Any):
        super().__init__(readout, rules, *arguments)
        self._states = WordLaunch(script, rules, self.tables, self.num_rows)

    def replace_first(self, num_rows: int) -> None:
        self._states(self.first.drawn, self.columns.table, self.lengths, num_rows, self.seconds)
