"""A family's rules in the form that the step kernels need: compile-time constants and small tables."""

from dataclasses import dataclass

import numpy as np
import torch

from stretto.engine.kernels.gpu import step_rules
from stretto.engine.kernels.gpu.step_rules import StepRules
from stretto.engine.request.rules import SegmentRules
from stretto.engine.worker.segment_ends import end_tables
from stretto.engine.worker.segment_state import denied_text, out_of_place
from stretto.engine.worker.slots import SlotTables
from stretto.streams.pattern import FORCED_TAIL, NO_TAIL, PADDED_TAIL, SAMPLED_TAIL
from stretto.streams.segment import Segment

KINDS = {
    FORCED_TAIL: step_rules.FORCED_TAIL,
    SAMPLED_TAIL: step_rules.SAMPLED_TAIL,
    PADDED_TAIL: step_rules.PADDED_TAIL,
    NO_TAIL: step_rules.NO_TAIL,
}


@dataclass(frozen=True)
class StepConstants:
    """Rules and device tables; see `advance_kernel` and `draw_streams_kernel` for their contents."""

    rules: StepRules
    tasks: torch.Tensor
    ends: torch.Tensor
    ends_of_audio: torch.Tensor
    end_frame: torch.Tensor
    begins: torch.Tensor
    transition: torch.Tensor
    streams: torch.Tensor
    denied: torch.Tensor
    is_guided: torch.Tensor
    codebooks: torch.Tensor
    out_of_place: torch.Tensor | None

    @classmethod
    def of(cls, rules: SegmentRules, tables: SlotTables, num_rows: int) -> "StepConstants":
        """Return the constants of `rules` for steps of up to `num_rows` rows."""
        family, layout = rules.family, rules.family.layout
        is_end, rows_to_audio, written, cut = end_tables(rules)
        limits = [rules.text_limit(task) for task in family.tasks]
        speaks = [Segment.AUDIO in task.segments for task in family.tasks]
        delays = [*layout.delays[1:], *[0] * layout.num_input_only]
        is_hidden = [stream in family.unconditional.hidden_streams for stream in range(1, layout.num_input_streams)]
        codebooks = [layout.audio[s] if s in layout.codebook_streams else range(0) for s in range(len(layout.audio))]

        def upload(values: object) -> torch.Tensor:
            return torch.as_tensor(np.array(values, np.int64)).to(tables.state.device)

        return cls(
            rules=step_rules_of(rules, tables, num_rows, is_end.shape[1]),
            tasks=upload([written, cut, limits, speaks]),
            ends=upload([is_end, rows_to_audio]),
            ends_of_audio=upload(rules.drawn_ends_of_audio),
            end_frame=upload(family.end_frame),
            begins=upload(family.staircase.begin if family.staircase else ()),
            transition=upload([*family.transition, layout.pad_id]),
            streams=upload([delays, is_hidden]),
            denied=torch.from_numpy(denied_text(rules)).to(tables.state.device),
            is_guided=upload([stream in family.guided_streams for stream in range(len(layout.audio))]),
            codebooks=upload([[ids.start for ids in codebooks], [ids.stop for ids in codebooks]]),
            out_of_place=upload(out_of_place(rules)).to(torch.uint8) if layout.frame_codec.places else None,
        )


def step_rules_of(rules: SegmentRules, tables: SlotTables, num_rows: int, num_ids: int) -> StepRules:
    """Return the compile-time constants of the kernels."""
    family, layout, script = rules.family, rules.family.layout, rules.family.script
    return StepRules(
        num_rows=num_rows,
        num_others=layout.num_input_streams - 1,
        num_drawn=layout.num_output_streams - 1,
        num_tasks=len(family.tasks),
        num_ids=num_ids,
        num_ends=len(rules.drawn_ends_of_audio),
        num_end_frame=len(family.end_frame),
        num_transition=len(family.transition),
        state_stride=tables.state.stride(0),
        script_stride=tables.script.stride(0),
        codes_stride=tables.codes.stride(0),
        pad_id=layout.pad_id,
        end_of_audio=family.end_of_audio,
        end_of_reply=family.end_of_reply,
        num_tail_rows=rules.num_tail_rows,
        audio_limit=rules.audio_limit,
        tail=KINDS[family.tail].value,
        warm_up_is_sampled=family.warm_up.is_sampled,
        hides_first=0 in family.unconditional.hidden_streams,
        first_start=layout.audio[0].start,
        first_stop=layout.audio[0].stop,
        null_id=family.unconditional.null_id,
        max_entries=rules.max_entries,
        spoken_start=script.spoken.start if script else 0,
        spoken_stop=script.spoken.stop if script else 0,
        first_frame=script.first_frame if script else 0,
        index_base=script.index_base if script else 0,
        index_lane=script.index_stream - 1 if script else 0,
        num_said=tables.said.shape[1],
        said_start=rules.counted_ids.start,
        track_lane=-1 if family.track_stream is None else family.track_stream - 1,
        has_staircase=family.staircase is not None,
    )
