"""Replies that ask for words, advanced row by row by the arrays or by the kernel of a step."""

from typing import Any

import numpy as np
import torch

from stretto.engine.columns import COLUMNS, LIMITS, STATE, SlotLimits, SlotState
from stretto.engine.kernels.gpu.step_draw import DRAWS
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import HostArrays, SlotTables
from stretto_kyutai.kyutai_tts.mechanism.arrays import WordLaunch, WordStates
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript
from stretto_kyutai.kyutai_tts.mechanism.track import WordTrack


class WordReplies:
    """Replies of a batch, one for each track, whose first row is `first`.

    Args:
        rules: Rules of the family's replies.
        tracks: Words of the replies.
        first: First row of the replies.
        arrays: Array factory.
        num_in_kernel: Number of replies that the interpreted kernel advances; 0 for the arrays.
    """

    def __init__(
        self, rules: SegmentRules, tracks: list[WordTrack], first: int, arrays: Any = None, num_in_kernel: int = 0
    ):
        self.number, self.rules, self.num_in_kernel = len(tracks), rules, num_in_kernel
        self.arrays = arrays or HostArrays()
        self.tables = SlotTables(self.number, rules, torch.device("cpu"))
        script = rules.family.drawing
        assert isinstance(script, WordScript)
        for slot, track in enumerate(tracks):
            self.extend(slot, track.entries())
            reply = ReplyState.begin(rules, rules.family.tasks[0], first, track)
            self.tables.state[slot] = torch.tensor(reply.values(rules.state_names))
        sampling = rules.family.tasks[0].sampling
        self.totals = torch.tensor([track.limits(sampling)["track_total"] for track in tracks])
        self.states = WordStates(script, rules, self.tables, self.arrays)
        self.launch = WordLaunch(script, rules, self.tables, self.number)

    def extend(self, slot: int, entries: np.ndarray) -> None:
        """Write table entries [n, 2] of a track."""
        for place, value in entries.tolist():
            self.tables.texts[slot, place] = value

    def next(self, position: int, drawn: np.ndarray) -> np.ndarray:
        """Return stream 0 of each reply in the row at `position`, in which the model samples `drawn` [B]."""
        slots = torch.arange(self.number)
        if self.num_in_kernel:
            plan = torch.zeros(len(COLUMNS), self.number, dtype=torch.int32)
            plan[COLUMNS.index("role")] = DRAWS.value
            plan[COLUMNS.index("slot")] = plan[COLUMNS.index("other")] = slots
            plan[COLUMNS.index("track_total")] = self.totals
            tokens = torch.from_numpy(drawn.astype(np.int32))[:, None]
            lengths = torch.full((self.number,), position, dtype=torch.int32)
            self.seconds = torch.full_like(lengths, -5)
            self.launch(tokens, plan, lengths, self.num_in_kernel, self.seconds)
            return tokens[: self.num_in_kernel, 0].numpy()
        limits = {name: self.arrays.zeros(self.number) for name in LIMITS}
        limits["track_total"] = self.arrays.upload(self.totals.numpy())
        state = SlotState(*self.arrays.wrap(self.tables.state)[:, : len(STATE)].T)
        where = self.arrays.upload(slots.numpy()), self.arrays.zeros(self.number) + position
        none: Any = None
        rows = Rows(state, SlotLimits(**limits), none, *where)
        return np.asarray(self.states(self.arrays.upload(drawn), rows))

    def seconds_at(self, position: int) -> list[int]:
        """Return the second stream of each reply in the row at `position`."""
        return self.tables.codes[:, position, self.rules.family.track_streams.start - 1].tolist()

    def state(self, slot: int) -> dict[str, int]:
        """Return the state of the reply in `slot`, by name."""
        return dict(zip(self.rules.state_names, self.tables.state[slot].tolist(), strict=True))
