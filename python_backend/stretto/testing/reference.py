"""Slow reference for a speech language model, which runs a transformers model row by row, in plain Python.

It shares no code with the engine except the family's data. `ReferenceModel.reply` returns all rows of a reply on all
streams, and the lead: the smallest margin, over all decisions, between the best and the second-best candidate.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.streams.layout import PADDED_WARM_UP, Segment
from stretto.testing.depth_reference import SlowDepth, depth_reference
from stretto.testing.noise import uniform
from stretto.testing.reference_conditions import ReferenceConditions
from stretto.testing.reference_rule import ReferenceRule, kept_ids

Row = list[int]


class CachedRows:
    """Sequence of rows and the model's key-value cache for it."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        heard: dict[int, torch.Tensor] | None = None,
        conditions: ReferenceConditions | None = None,
    ):
        self.model = model
        self.family = family
        self.heard = heard or {}
        self.conditions = conditions
        self.cache = DynamicCache()
        self.num_read = 0
        self.guess = list[Row]()
        self.guessed_hidden = torch.zeros(0)
        self.newest_hidden: Any = None  # hidden state of the newest row

    def read_ahead(self, guess: list[Row]) -> None:
        """Compute the hidden states of guessed rows in one forward pass; they are used while the guess is right."""
        hidden = self.hidden(guess)
        self.guess = guess
        self.guessed_hidden = hidden
        self.cache = DynamicCache()
        self.num_read = 0

    @torch.no_grad()
    def hidden(self, rows: list[Row]) -> torch.Tensor:
        """Return the hidden states of the new rows in `rows`, which end the tensor [n, H]; earlier ones are cached."""
        first = self.num_read
        self.num_read = len(rows)
        if self.guess:
            if rows[first:] == self.guess[first : len(rows)]:
                return self.guessed_hidden[first : len(rows)]
            first = 0
            self.guess = []
        embedded = self.embed(rows[first:])
        for position in self.heard.keys() & range(first, len(rows)):
            embedded[position - first] = self.heard[position]
        hidden = self.model.model(inputs_embeds=embedded[None], past_key_values=self.cache, use_cache=True)
        return hidden.last_hidden_state[0]

    @torch.no_grad()
    def embed(self, rows: list[Row]) -> torch.Tensor:
        """Return the sum of the embeddings of each row's streams, [n, H]."""
        ids = torch.tensor(rows)
        embedded = self.model.model.embed_tokens(ids)  # [n, S, H]
        silent = (ids == self.family.layout.pad_id) & self.family.layout.pad_is_silent
        silent[:, 0] = False
        total = embedded.masked_fill(silent[..., None], 0.0).sum(1)
        return total if self.conditions is None else total + self.conditions.added

    def last_hidden(self, rows: list[Row], distance: int) -> torch.Tensor:
        """Return the hidden state [1, H] from which the row after `rows` is sampled.

        A simple rule replaces the MCTP modules: the previous hidden state plus the last row's embedding, normalised.

        Args:
            distance: Number of rows since the last one that the main model generated.
        """
        if distance:
            mixed = self.newest_hidden + self.embed(rows[-1:])
            self.newest_hidden = mixed / (mixed.square().mean() + 1e-6).sqrt()
        else:
            self.newest_hidden = self.hidden(rows)[-1:]
        return self.newest_hidden


class ReferenceModel:
    """Slow reference model for a checkpoint.

    Attributes:
        was_cut: True if a length limit ended a segment of the last reply before the model did.
    """

    was_cut = False
    depth: SlowDepth | None = None  # for a family with a depth transformer
    conditions: ReferenceConditions | None = None  # for a family with conditions

    def __init__(self, folder: Path, family: Family, max_model_len: int):
        config = json.loads((folder / "config.json").read_text())
        self.family = family
        self.max_model_len = max_model_len
        self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float().eval()
        weights = load_file(folder / "model.safetensors")
        self.bias = weights.pop("stream_bias.weight") if family.has_stream_bias else None
        self.hearing = {name: weights.pop(name) for name in list(weights) if name.startswith(("audio_", "adaptor."))}
        self.audio_config = config.get("audio_config")
        if family.depth:
            self.depth = depth_reference(family, weights)
        if family.mechanism.conditions is not None:
            conditions: ReferenceConditions = family.mechanism.conditions.reference()
            conditions.attach(weights, self.model)
            self.conditions = conditions
        if config["tie_word_embeddings"]:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        self.model.load_state_dict(weights)

    def context(self, heard: dict[int, torch.Tensor] | None = None) -> CachedRows:
        """Return the state of a reply before its first row."""
        return CachedRows(self.model, self.family, heard, self.conditions)

    @torch.no_grad()
    def heads(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of all streams, [n, H] -> [n, S, V], or [n, 1, V] if all streams have the same."""
        return self.model.lm_head(hidden[:, None] if self.bias is None else hidden[:, None] + self.bias)

    def logits(self, rows: list[Row]) -> torch.Tensor:
        """Return the logits [n, S, V] after each of `rows` [n][S], computed in one forward pass."""
        return self.heads(CachedRows(self.model, self.family).hidden(rows))

    @torch.no_grad()
    def encode_audio(self, prompt: Prompt) -> dict[int, torch.Tensor]:
        """Encode the audio inputs of `prompt`; map their positions in the prompt to the encoder's output rows."""
        rows_by_position: dict[int, torch.Tensor] = {}
        for audio in prompt.audios:
            if self.audio_config.get("model_type") == "x_vector":
                rows_by_position[audio.first_row] = torch.from_numpy(audio.features[0]) + self.hearing["adaptor.pad"]
                continue
            if audio.features.shape[-1] == self.model.config.hidden_size:  # the preprocessor has computed the rows
                rows_by_position |= {
                    audio.first_row + at: torch.from_numpy(row) for at, row in enumerate(audio.features)
                }
                continue
            tower = Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**self.audio_config)).eval()
            tower.load_state_dict(
                {n.removeprefix("audio_tower."): t for n, t in self.hearing.items() if n.startswith("audio_tower.")}
            )
            features = torch.from_numpy(audio.features)
            hidden = tower(features.T, feature_lens=torch.tensor([len(features)])).last_hidden_state
            rows = hidden @ self.hearing["adaptor.weight"].T + self.hearing["adaptor.bias"]
            rows_by_position |= {audio.first_row + index: row for index, row in enumerate(rows)}
        return rows_by_position

    def reply(
        self, prompt: Prompt, changes: Sequence[tuple[int, bool]] = (), guess: Sequence[Row] = ()
    ) -> tuple[list[Row], float]:
        """Generate a reply.

        A right guess of the reply saves most of the time, because one forward pass computes the hidden states of all
        rows. From the first wrong row on, the guess is not used.

        Args:
            changes: For policy `adaptive`, frames at which guidance is switched on (True) or off.
            guess: Ids of the output streams in the rows that the reply probably has, such as those of an engine.

        Returns:
            Rows of the reply, [n][S], and the smallest margin by which the best candidate beat the second-best in any
            decision.
        """
        if self.conditions is not None:
            self.conditions.use(prompt.condition)
        reply = _Reply(self, prompt, changes, self.context(self.encode_audio(prompt)))
        if guess:
            read_ahead(reply, guess)
        rows, lead = reply.run()
        self.was_cut = reply.was_cut
        return rows, lead


def merged(conditional: list[float], unconditional: list[float], scale: float) -> list[float]:
    """Return guided logits; ids that both requests forbid stay forbidden."""
    a = np.array(conditional)
    b = np.array(unconditional)
    with np.errstate(invalid="ignore"):  # difference of two forbidden ids, -inf - -inf
        return np.where(a == b, a, b + scale * (a - b)).tolist()


def stream_ids(family: Family, stream: int) -> list[int]:
    """Return the ids that a stream may have in audio: codes and extra ids, except ids that are never sampled."""
    layout = family.layout
    ids = [*layout.audio[stream], *(layout.extra[stream] if layout.extra else ())]
    return ids if stream else family.drawing.sampled_ids(ids)


def hide_recording(row: Row, frame: int, family: Family) -> None:
    """Replace codes of a recording, which precede each stream's first frame, with pads, but keep initial ids."""
    layout = family.layout
    for s in range(1, 0 if family.warm_up.is_sampled else layout.num_output_streams):
        if frame < layout.delays[s] and not (layout.initial and row[s] == layout.initial[s]):
            row[s] = layout.pad_id


def unconditional_context(reply: "_Reply") -> CachedRows:
    """Return an empty context for the unconditional request of a reply."""
    kept = range(reply.family.unconditional.keep_first)
    return reply.reference.context({at: row for at, row in reply.context.heard.items() if at in kept})


class _Reply:
    def __init__(
        self, reference: ReferenceModel, prompt: Prompt, changes: Sequence[tuple[int, bool]], context: CachedRows
    ):
        self.changes = changes
        self.context = context
        self.reference = reference
        self.family = reference.family
        self.prompt = prompt
        self.task = self.family.task(prompt.task)
        self.sampling = prompt.sampling
        self.rows: list[Row] = prompt.rows.tolist()
        self.other: Any = None  # Context of the unconditional request
        self.sampled: Row = []  # ids of the next row, if they are given
        self.seed: Any = self.sampling.seed
        self.lead = math.inf
        self.audio_start: Any = len(self.rows) if self.task.segments[0] is Segment.AUDIO else None
        self.audio_end: Any = None
        self.was_cut = self.audio_met_limit = self.is_merging = False
        # Number of rows after the row that ends the audio, and number of audio rows in excess of frames.
        slowest = max(self.family.layout.delays)
        self.tail = self.family.tail.num_rows(slowest)
        self.extra = self.family.tail.num_closing_rows(slowest)
        self.max_audio_rows = self.sampling.audio.max_rows
        self.recorded = list[list[int]]()
        if self.family.code_track is not None:  # the reply ends one row after the recording's codes
            width = len(self.family.code_track.streams)
            self.recorded = [list(prompt.track[at : at + width]) for at in range(0, len(prompt.track), width)]
            self.max_audio_rows = min(self.max_audio_rows, len(self.recorded) + 1)
        rule = self.family.drawing.reference
        self.rule = ReferenceRule(self.family.drawing, prompt) if rule is None else cast(ReferenceRule, rule(prompt))
        self.kinds = ""  # one letter per row; M: generated by the main model, m: by a predictor
        steps = self.family.mechanism.steps
        while steps is not None and len(self.kinds) < reference.max_model_len:
            self.kinds += "M" + "m" * steps.schedule(self.sampling.schedule).num_extra(len(self.kinds))

    def run(self) -> tuple[list[Row], float]:
        while True:
            row = self.next_row(self.guided(self.logits(self.context, self.rows)))
            self.rows.append(row)
            if row[0] == self.family.end_of_reply:
                return self.rows[len(self.prompt.rows) :], self.lead

    def logits(self, context: CachedRows, rows: list[Row]) -> list[list[float]]:
        """Return each output stream's logits over the vocabulary after the last of `rows`."""
        kinds = self.kinds[: 1 + len(rows) - len(self.prompt.rows)]
        hidden = context.last_hidden(rows, len(kinds) - len(kinds.rstrip("m")))
        if self.reference.depth is not None:
            return [self.reference.depth.logits(hidden[0], [])] + [[]] * (self.family.layout.num_output_streams - 1)
        logits = self.reference.heads(hidden)[0].tolist()
        return logits if len(logits) > 1 else logits * self.family.layout.num_output_streams

    def guided(self, logits: list[list[float]]) -> list[list[float]]:
        """Return each output stream's logits with guidance applied."""
        scale = self.sampling.guidance_scale
        self.is_merging = scale != 1.0 and self.audio_start is not None
        self.is_merging = self.is_merging and self.is_guided(len(self.rows) - self.audio_start)
        if not self.is_merging:
            return logits
        if self.other is None:
            self.other = unconditional_context(self)
        other = self.logits(self.other, [self.hidden(position) for position in range(len(self.rows))])
        for s in self.family.guided_streams:
            logits[s] = merged(logits[s], other[s], scale)
        return logits

    def deeper(self, row: Row, stream: int) -> list[float]:
        """Return the depth transformer's logits for `stream` in the next row; `row` has the ids of previous streams."""
        ids = row[:stream], (row[self.family.track_streams.start] if self.family.second_ids else None)
        depth = self.reference.depth
        assert depth is not None
        logits = depth.logits(self.context.newest_hidden[0], *ids)
        if not self.is_merging or stream not in self.family.guided_streams:
            return logits
        other = depth.logits(self.other.newest_hidden[0], *ids)
        return merged(logits, other, self.sampling.guidance_scale)

    def is_guided(self, frame: int) -> bool:
        """Return True if row `frame` of the audio segment is sampled with guidance."""
        if frame < 0:
            return False
        if self.sampling.policy == "until_s":  # -1e-6: 0.28 s at 25 Hz are 7 rows, but 0.28 * 25 is 7.000000000000001
            until_s: Any = self.sampling.guided_until_s
            limit = self.family.rows_per_frame * math.ceil(until_s * self.family.frame_rate - 1e-6)
            while self.kinds[limit : limit + 1] == "m":  # guidance ends with a step; such a reply has only audio
                limit += 1
            return frame < limit
        return [is_on for first, is_on in [(0, True), *self.changes] if first <= frame][-1]

    def hidden(self, position: int) -> Row:
        """Return the row at `position` in the unconditional request."""
        layout = self.family.layout
        context = self.family.unconditional
        row = list(self.rows[position])
        if position < self.audio_start:
            if context.keep_first <= position < self.audio_start - context.keep_last:
                return [context.null_id] + [layout.pad_id] * (len(row) - 1)
            return row
        hide_recording(row, position - self.audio_start, self.family)
        for s in context.hidden_streams:
            if s >= layout.num_output_streams or row[s] in layout.audio[s]:
                row[s] = context.null_id if s == 0 else layout.pad_id
        return row

    def next_row(self, logits: list[list[float]]) -> Row:
        family = self.family
        position = len(self.rows)
        row = [family.layout.pad_id] * family.layout.num_input_streams
        if family.text_track is not None and family.reads_text_by_row:
            track = dict(enumerate(self.prompt.track, len(self.prompt.rows)))
            row[family.text_track.stream] = track.get(position, family.text_track.pad_id)
        if family.code_track is not None:
            for codes in self.recorded[position - len(self.prompt.rows) :][:1]:
                row[family.code_track.streams.start : family.code_track.streams.stop] = codes
        if self.audio_start is None:
            row[0] = self.text_token(self.penalized(logits[0]))
            self.rule.finish_text_row(row)
            return row
        if position < self.audio_start:
            row[0] = family.transition[position - self.audio_start]
            return row
        frame = position - self.audio_start
        if self.audio_end is None and not self.meets_limit(frame):
            row_given = self.rule.given_row(lambda: self.draw_first(logits[0], frame))
            if row_given is not None:
                row[0], row[cast(Any, family.text_track).stream] = row_given
                return row
        if self.audio_end is None:
            row[0] = self.audio_token(logits[0], frame)
            self.rule.replace_first(row, position, family)
            if row[0] == family.end_of_audio:
                self.audio_end = position
        elif position == self.audio_end + (self.tail if self.audio_end > self.audio_start else 1):
            row[0] = family.end_of_reply
        elif self.distance_after_audio(position) <= family.tail.last_kept(0):
            row[0] = self.draw_first(logits[0], frame)
        for s in range(1, len(family.layout.audio)):
            if self.is_read(position, frame, family.layout.delays[s]):
                plain = logits[s] or self.deeper(row, s)
                logits[s] = self.rule.penalized(plain, plain, s)
                row[s] = self.draw(logits[s], stream_ids(self.family, s), s, self.sampling.depth or self.sampling.audio)
            elif frame < family.layout.delays[s] and self.prompt.delayed_tail is not None:
                row[s] = int(self.prompt.delayed_tail[frame, s - 1])
        if self.audio_end is None:
            self.rule.replace_streams(row, position, family)
        return self.ended(row, frame)

    def penalized(self, logits: list[float]) -> list[float]:
        """Return the logits of stream 0 with the penalty, which applies to audio only if there is no text."""
        drawing = self.family.drawing
        writes = any(task.text for task in self.family.tasks)
        if not drawing.counts_ids or writes != (self.audio_start is None):
            return logits
        first = 0 if drawing.penalized == "all" else len(self.prompt.rows)
        counted = {row[0] for row in self.rows[first:]}
        penalty = self.sampling.repetition_penalty
        factors = [penalty if logit < 0 else 1 / penalty for logit in logits]
        factors = [factor if token in counted else 1.0 for token, factor in enumerate(factors)]
        return [logit * factor for logit, factor in zip(logits, factors, strict=True)]

    def ended(self, row: Row, frame: int) -> Row:
        """Return `row`, or the row that ends the audio if it is the end frame or a rule has ended the audio."""
        family = self.family
        end = list(family.end_frame)
        is_end_frame = bool(end) and row[: len(end)] == end and frame >= self.sampling.audio.min_rows
        if self.audio_end is not None or not (is_end_frame or row[0] == family.end_of_audio):
            return row
        self.audio_end = len(self.rows)
        return [family.end_of_audio] + [family.layout.pad_id] * (len(row) - 1)

    def is_read(self, position: int, frame: int, delay: int) -> bool:
        """Return True if a stream with a delay is sampled at `position`, which is row `frame` of the audio."""
        if self.family.warm_up is PADDED_WARM_UP and frame < delay:
            return False
        return self.audio_end is None or self.distance_after_audio(position) <= self.family.tail.last_kept(delay)

    def distance_after_audio(self, position: int) -> int:
        """Return a row's distance from the end of audio, in which some rows may be left out after a length limit."""
        is_shorter = self.audio_met_limit and position > self.audio_end
        return position - self.audio_end + self.family.tail.cut_rows * is_shorter

    def first_ids(self, frame: int) -> list[int]:
        ends = list(self.family.drawn_ends) or [self.family.end_of_audio]
        if self.family.end_frame or self.family.code_track is not None or self.family.drawing.ends_audio:
            ends = []
        places = self.family.layout.frame_codec.places
        if places:  # a frame takes several rows, and the audio ends between two frames
            row_of_frame = frame % len(places)
            return list(places[row_of_frame]) + ends * (row_of_frame == 0 and frame >= self.sampling.audio.min_rows)
        ends *= frame >= self.sampling.audio.min_rows
        codes = stream_ids(self.family, 0)
        return self.rule.permitted(codes, ends)

    def text_token(self, logits: list[float]) -> int:
        family = self.family
        limits = self.sampling.text
        position = len(self.rows)
        speaks = Segment.AUDIO in self.task.segments
        written = family.end_of_text if speaks else family.end_of_reply
        ends: Any = list(family.drawn_ends) or [written]
        count = position - len(self.prompt.rows)
        last = self.reference.max_model_len - 1
        if speaks:
            last -= self.tail + self.extra + 2 + len(family.transition)
        if family.code_track is not None:  # the reply ends with the recording
            if count > len(self.recorded):
                return family.end_of_reply
            ends = []
        is_full = self.rule.text_is_full()
        allowed = [token for ids in self.task.text for token in ids if token not in ends]
        allowed += ends * (count >= limits.min_rows)
        token = self.draw(logits, allowed, 0, limits)
        is_cut = token not in ends and (count >= limits.max_rows or position >= last or is_full)
        self.was_cut |= is_cut
        if token not in ends and not is_cut:
            return token
        if speaks:
            self.audio_start = position + 1 + len(family.transition)
        if written is not None:
            return written
        if token in ends:
            return token
        self.audio_start -= 1  # no row between the last word and the transition to the audio
        return family.transition[0]

    def audio_token(self, logits: list[float], frame: int) -> int:
        family = self.family
        sampled = self.rule.sampled(logits, frame, self.noise(0, 0), family)
        token, margin = sampled or (self.draw_first(logits, frame), math.inf)
        self.lead = min(self.lead, margin)
        is_end = token in (*family.drawn_ends, family.end_of_audio)
        self.audio_met_limit = self.meets_limit(frame)
        has_followed = self.family.code_track is not None and frame > len(self.recorded)
        self.was_cut |= self.audio_met_limit and not is_end and not has_followed
        return family.end_of_audio if is_end or self.audio_met_limit else token

    def meets_limit(self, frame: int) -> bool:
        """Return True if a length limit ends the audio at its row `frame`."""
        is_last = len(self.rows) >= self.reference.max_model_len - 1 - self.tail
        return frame >= self.max_audio_rows or is_last

    def draw_first(self, logits: list[float], frame: int) -> int:
        """Sample stream 0 of row `frame` of the audio."""
        penalized = self.penalized(logits)
        with_rule = self.rule.penalized(logits, penalized, 0)
        return self.draw(with_rule, self.first_ids(frame), 0, self.sampling.audio, penalized)

    def draw(
        self,
        logits: list[float],
        allowed: list[int],
        stream: int,
        limits: CodeSampling,
        penalized: list[float] | None = None,
    ) -> int:
        """Sample an id. `penalized` are the logits with the repetition penalty, for stream 0 in audio only."""
        if self.sampled:
            return self.sampled[stream]
        ranked = sorted(allowed, key=logits.__getitem__, reverse=True)
        if limits is self.sampling.text:
            scores = kept_ids(logits, ranked, limits)
        else:
            scores = self.rule.kept(logits, ranked, limits, logits if penalized is None else penalized)
        if limits.temperature > 0:
            noise = {t: -math.log(-math.log(self.noise(stream, t))) for t in scores}
            scores = {token: scores[token] / limits.temperature + noise[token] for token in scores}
        best = sorted(scores, key=lambda token: -scores[token])[:2]
        if len(best) == 2:
            self.lead = min(self.lead, scores[best[0]] - scores[best[1]])
        if not self.repeats(best[0], stream, limits):
            return best[0]
        return self.redrawn(logits, allowed if stream else self.rule.redrawn_from(allowed, best[0]), stream)

    def noise(self, stream: int, token: int, is_redraw: bool = False) -> float:
        """Return the number by which a token of the next row is drawn."""
        position = len(self.rows)
        num_rows = -1 if self.audio_start is None else position - self.audio_start
        if self.task.segments[0] is Segment.INTERLEAVED:
            num_rows = sum(row[0] in self.family.layout.audio[0] for row in self.rows[len(self.prompt.rows) :])
        frames = [frame * self.family.rows_per_frame for frame in self.sampling.redraw_from]
        attempt = sum(frame == 0 or frame + self.family.layout.max_delay <= num_rows for frame in frames)
        return uniform(self.seed, position, stream, token, is_redraw, attempt)

    def repeats(self, token: int, stream: int, limits: CodeSampling) -> bool:
        """Return True if `token` is a code that occurred too often in the stream's last audio rows."""
        layout = self.family.layout
        window = self.sampling.ras_window
        if window == 0 or limits is self.sampling.text or stream not in layout.codebook_streams:
            return False
        if not self.rule.is_guarded(token, stream, token in layout.audio[stream]):
            return False
        ids = [row[stream] for row in self.rows[self.audio_start :]]
        before = ids[-window:] if stream else self.rule.counted(ids, window)
        return before.count(token) >= self.sampling.ras_max_repeats

    def redrawn(self, logits: list[float], allowed: Sequence[int], stream: int) -> int:
        """Return a token sampled again, from the softmax of the raw logits."""
        noise = {t: self.noise(stream, t, is_redraw=True) for t in allowed}
        scores = {t: logits[t] - math.log(-math.log(noise[t])) for t in allowed}
        first, *others = sorted(scores, key=lambda t: -scores[t])[:2]
        self.lead = min([self.lead, *(scores[first] - scores[other] for other in others)])
        return first


LIKELY = 30.0  # logit of the only likely id; its exponential can still be added to 1


def read_ahead(reply: _Reply, guess: Sequence[Row]) -> None:
    """Compute the hidden states for a guess [n][S] of a new reply in one pass; see the contexts' `read_ahead`."""
    layout = reply.family.layout
    trial = _Reply(reply.reference, reply.prompt, reply.changes, reply.context)
    for ids in guess:  # the ids of the input streams follow from those of the output streams
        trial.sampled = ids
        first = [0.0] * layout.vocab_size
        first[ids[0]] = LIKELY
        trial.rows.append(trial.next_row([first, *[[0.0]] * (layout.num_output_streams - 1)]))
        if trial.rows[-1][0] == reply.family.end_of_reply:
            break
    reply.context.read_ahead(trial.rows[:-1])
    if reply.sampling.guidance_scale != 1.0 and trial.audio_start is not None:
        reply.other = unconditional_context(reply)
        reply.other.read_ahead([trial.hidden(position) for position in range(len(trial.rows) - 1)])
