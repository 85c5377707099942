"""From hidden states to one id per stream: heads, guidance, masks, draw. No host sync."""

import torch

from python_backend.engine.batch import BatchPlan
from python_backend.engine.heads import StreamHeads
from python_backend.engine.kernels.draw import draw
from python_backend.engine.machine import Rows, SegmentMachine
from python_backend.engine.slots import SlotTables
from python_backend.sampling.draw import DrawParams
from python_backend.sampling.guidance import guide
from python_backend.sampling.noise import stream_keys, uniform
from python_backend.sampling.script import advances


class RowDraw:
    """Draws the conditional rows of a batch; a guided row sees its partner's logits."""

    def __init__(self, heads: StreamHeads, machine: SegmentMachine, tables: SlotTables):
        self._heads, self._machine, self._tables = heads, machine, tables
        family = machine.family
        self._num_streams = family.layout.num_output_streams
        self._guided = [stream - 1 for stream in family.guided_streams if stream > 0]
        self._guides_first = 0 in family.guided_streams

    def __call__(self, hidden: torch.Tensor, plan: BatchPlan, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Stream 0 [M] and the streams 1 ... [M, S - 1] int32 of the conditional rows, from `hidden` [B, H] of all."""
        keys = stream_keys(rows.limits.seed_key.to(torch.int32), rows.position, self._num_streams)
        own = hidden if len(plan.conditional) == len(hidden) else hidden[rows.index]
        text = self._draw_text(own, keys, plan, rows) if plan.may_write else None
        audio = drawn = None
        if plan.may_speak:
            first, auxiliary = self._heads.first(own), self._heads.auxiliary(own)
            if plan.has_pairs:
                first, auxiliary = self._guide(first, auxiliary, hidden, plan, rows)
            audio = self._draw_first(first, keys, plan, rows)
            drawn = draw(auxiliary, self._heads.codes, keys[:, 1:], _audio_params(rows), plan.audio)
        token = self._machine.choose(text, audio, rows)
        return token, self._machine.place_codes(drawn, token, rows).to(torch.int32)

    def _draw_text(self, hidden: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, rows: Rows) -> torch.Tensor:
        """Stream 0 of rows in a text segment, [M]."""
        params = DrawParams(rows.scales.text_temperature, rows.limits.text_top_k, rows.scales.text_top_p)
        logits = self._machine.mask_text(self._heads.text(hidden), rows)
        token = draw(logits[:, None], self._heads.text_ids[None], keys[:, :1], params, plan.text)
        return self._machine.end_text(token.squeeze(1), rows)

    def _draw_first(self, logits: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, rows: Rows) -> torch.Tensor:
        """Stream 0 of rows in an audio segment, [M]."""
        machine = self._machine
        if machine.script:
            entries = self._tables.script[rows.slots]
            stay = machine.stay_column(rows, entries)
            noise = uniform(keys[:, 0], torch.zeros_like(stay))
            advance = advances(logits, stay, rows.scales.script_temperature, noise)
            token = machine.follow_script(advance, rows, entries)
        else:
            logits = machine.mask_audio(logits, rows)[:, None]
            token = draw(logits, self._heads.first_ids[None], keys[:, :1], _audio_params(rows), plan.audio).squeeze(1)
        return machine.end_audio(token, rows)

    def _guide(
        self, first: torch.Tensor, auxiliary: torch.Tensor, hidden: torch.Tensor, plan: BatchPlan, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both logits with the halves of each pair merged, raw, before any mask."""
        paired = torch.from_numpy(plan.paired).to(hidden.device)
        other = hidden[torch.from_numpy(plan.unconditional).to(hidden.device)]
        scale = rows.scales.guidance[paired]
        guided = guide(auxiliary[paired], self._heads.auxiliary(other), scale)
        if len(self._guided) == auxiliary.shape[1]:
            auxiliary[paired] = guided
        else:
            for stream in self._guided:
                auxiliary[paired, stream] = guided[:, stream]
        if self._guides_first:
            first[paired] = guide(first[paired], self._heads.first(other), scale)
        return first, auxiliary


def _audio_params(rows: Rows) -> DrawParams:
    return DrawParams(rows.scales.audio_temperature, rows.limits.audio_top_k, rows.scales.audio_top_p)
