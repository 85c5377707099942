"""Batched speech generation and transcription for evaluation, with the training network and the engine's rules.

Text segments are decoded greedily. In the audio segment, stream 0 is the alignment pointer, which stays or advances.
The codec streams are sampled from guided logits, unconditional + scale · (conditional - unconditional), with
temperature and top k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stretto.families.tiny import family as tiny
from training.tiny.builders import KEPT_FIRST
from training.tiny.network import NUM_TEXT_IDS, Network
from training.tiny.sequences import INDEX, MAX_DELAY, SPACE, characters
from training.tiny.session import Session

FIRST_CODEC = 1
LAST_CODEC = 1 + tiny.NUM_CODEBOOKS
PHONEME_TEXT = (range(SPACE, SPACE + 1), tiny.SPOKEN)
ANY_TEXT = (tiny.WRITTEN, tiny.SPOKEN, range(tiny.SEPARATOR, tiny.SEPARATOR + 1))


@dataclass(frozen=True)
class Speaking:
    """Sampling parameters of an audio segment."""

    guidance_scale: float = 2.0
    temperature: float = 0.3
    top_k: int = 30
    script_temperature: float = 0.6
    seed: int = 0
    max_rows: int = 800


def blank(stream_0: Sequence[int]) -> np.ndarray:
    """Return rows [R, 9] with these ids on stream 0 and padding on the others."""
    rows = np.full((len(stream_0), tiny.LAYOUT.num_input_streams), tiny.PAD, dtype=np.int64)
    rows[:, 0] = stream_0
    return rows


def audio_prompt(codes: np.ndarray) -> np.ndarray:
    """Return the rows of an audio prompt, int64 [T + 9, 9]: delayed codes [T, 7], with frames numbered from 1."""
    count = len(codes) + MAX_DELAY
    rows = blank([tiny.PAD] * count)
    for k, delay in enumerate(tiny.LAYOUT.delays[1:]):
        rows[delay : delay + len(codes), 1 + k] = (
            tiny.FIRST_CODE + k * tiny.CODEBOOK_SIZE + codes[:, k].astype(np.int64)
        )
    rows[:, INDEX] = tiny.FRAME_INDEX_BASE + 1 + np.arange(count)
    return rows


def write_text(
    network: Network, prompts: list[np.ndarray], allowed: Sequence[range], stop: int, max_rows: int
) -> list[list[int]]:
    """Generate the greedy text segment of each prompt, excluding `stop`, of at most `max_rows` rows."""
    permitted = torch.zeros(NUM_TEXT_IDS, dtype=torch.bool)
    permitted[[stop, *(token_id for ids in allowed for token_id in ids)]] = True
    session = Session(network, prompts)
    texts: list[list[int]] = [[] for _ in prompts]
    ordinals = [0] * len(prompts)
    open_ = [True] * len(prompts)
    for _ in range(max_rows):
        logits = network.text_logits(session.hidden).masked_fill(~permitted, -torch.inf)
        rows = np.full((len(prompts), tiny.LAYOUT.num_input_streams), tiny.PAD, dtype=np.int64)
        for index, token_id in enumerate(logits.argmax(-1).tolist()):
            open_[index] = open_[index] and token_id != stop
            if open_[index]:
                texts[index].append(token_id)
                rows[index, 0] = token_id
                if token_id in tiny.SPOKEN:
                    ordinals[index] += 1
                    rows[index, INDEX] = tiny.PHONEME_INDEX_BASE + ordinals[index]
        if not any(open_):
            break
        session.step(torch.from_numpy(rows))
    return texts


def text_prompt(text: str, voice: str) -> np.ndarray:
    """Return the prompt rows of a speech request for `text`."""
    return blank([tiny.TTS, tiny.VOICES[voice], *characters(text), tiny.BEGIN_TEXT])


def phonemise(network: Network, prompts: list[np.ndarray]) -> list[list[int]]:
    """Generate the phoneme text of each prompt."""
    return write_text(network, prompts, PHONEME_TEXT, tiny.END_OF_TEXT, 511)


def transcribe(network: Network, codes: list[np.ndarray]) -> list[list[int]]:
    """Generate phoneme text, separator and characters for each utterance, given its codes [T, 7]."""
    prompts = []
    for each in codes:
        rows = blank([tiny.ASR, tiny.BEGIN_AUDIO, *[tiny.PAD] * (len(each) + MAX_DELAY), tiny.BEGIN_TEXT])
        rows[2:-1] = audio_prompt(each)
        prompts.append(rows)
    return write_text(network, prompts, ANY_TEXT, tiny.END_OF_REPLY, 800)


def written(token_ids: Sequence[int]) -> str:
    """Return the characters after the separator; empty if there is no separator."""
    start = token_ids.index(tiny.SEPARATOR) + 1 if tiny.SEPARATOR in token_ids else len(token_ids)
    return "".join(tiny.CHARACTERS[i - tiny.FIRST_CHARACTER] for i in token_ids[start:] if i in tiny.WRITTEN)


def with_text(prompt: np.ndarray, text: Sequence[int]) -> np.ndarray:
    """Return the rows of a prompt, followed by its text segment and the forced rows before the audio."""
    rows = blank([*text, tiny.END_OF_TEXT, tiny.BEGIN_AUDIO])
    ordinal = 0
    for position, token_id in enumerate(text):
        if token_id in tiny.SPOKEN:
            ordinal += 1
            rows[position, INDEX] = tiny.PHONEME_INDEX_BASE + ordinal
    return np.concatenate([prompt, rows])


def without_text(context: np.ndarray) -> np.ndarray:
    """Return the unconditional variant of rows from `with_text`."""
    rows = blank([tiny.NULL] * len(context))
    rows[:KEPT_FIRST] = context[:KEPT_FIRST]
    rows[-1] = context[-1]
    return rows


class Scripts:
    """Alignment pointers of a batch, one for the current phoneme of each utterance."""

    def __init__(self, scripts: list[list[int]]):
        self.length = torch.tensor([len(script) for script in scripts])
        self._table = torch.zeros(len(scripts), int(self.length.max()) + 1, dtype=torch.long)
        for index, script in enumerate(scripts):
            self._table[index, : len(script)] = torch.tensor(script) - tiny.FIRST_PHONEME
        self.entry = torch.full_like(self.length, -1)
        self.end = torch.full_like(self.length, 1 << 30)  # row of end_of_audio

    def _frame_token(self) -> Tensor:
        phoneme = self._table.gather(1, self.entry.clamp(min=0)[:, None])[:, 0]
        return tiny.FIRST_FRAME_TOKEN + 2 * phoneme

    def advance(self, logits: Tensor, row: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Choose stream 0 [B] of this row from its logits [B, ids]: stay, advance, end, or pad after the end."""
        spoken = torch.full_like(logits, -torch.inf)
        for ids in (slice(tiny.FIRST_FRAME_TOKEN, NUM_TEXT_IDS), slice(tiny.END_OF_AUDIO, tiny.END_OF_AUDIO + 1)):
            spoken[:, ids] = logits[:, ids]
        stay = spoken.log_softmax(-1).gather(1, self._frame_token()[:, None] + 1)[:, 0].clamp(max=-1e-6)
        odds = torch.log(-torch.expm1(stay)) - stay
        moves = torch.rand(len(odds), generator=generator) < torch.sigmoid(odds / temperature)
        moves = (moves | (self.entry < 0)) & (self.end > row)
        self.end[moves & (self.entry + 1 >= self.length)] = row
        begins = moves & (self.end > row)
        self.entry = self.entry + begins
        token = self._frame_token() + (~begins).long()
        token = torch.where(self.end == row, tiny.END_OF_AUDIO, token)
        return torch.where(self.end < row, tiny.PAD, token)

    def index(self, row: int) -> Tensor:
        return torch.where(self.end > row, tiny.PHONEME_INDEX_BASE + 1 + self.entry, tiny.PAD)


def draw_codes(logits: Tensor, speaking: Speaking, generator: torch.Generator) -> Tensor:
    """Sample codes [B, 7] from guided logits [B, 7, 256]."""
    kept = logits.topk(speaking.top_k, -1)
    weights = (kept.values / speaking.temperature).softmax(-1)
    choice = torch.multinomial(weights.flatten(0, 1), 1, generator=generator).view(*logits.shape[:2], 1)
    return kept.indices.gather(-1, choice)[..., 0]


@dataclass(frozen=True)
class Utterance:
    """Generated speech: codes [T, 7], the index of each frame's phoneme [T], and whether it ended by itself."""

    codes: np.ndarray
    phoneme_of_frame: np.ndarray
    ended: bool


def speak(
    network: Network, texts: list[str], voice: str, speaking: Speaking, scripts: list[list[int]] | None = None
) -> tuple[list[np.ndarray], list[bool]]:
    """Return the codes [T, 7] of each text, and whether its utterance ended (see `speak_aligned`)."""
    found = speak_aligned(network, texts, voice, speaking, scripts)
    return [utterance.codes for utterance in found], [utterance.ended for utterance in found]


@torch.inference_mode()
def speak_aligned(
    network: Network, texts: list[str], voice: str, speaking: Speaking, scripts: list[list[int]] | None = None
) -> list[Utterance]:
    """Generate the speech of normalised texts. `scripts` are phoneme texts to use, None to generate them."""
    prompts = [text_prompt(text, voice) for text in texts]
    contexts = [with_text(*pair) for pair in zip(prompts, scripts or phonemise(network, prompts), strict=True)]
    pointer = Scripts([[i for i in context[:, 0].tolist() if i in tiny.SPOKEN] for context in contexts])
    guided = speaking.guidance_scale != 1
    count = len(texts)
    session = Session(network, contexts + ([without_text(context) for context in contexts] if guided else []))
    generator = torch.Generator().manual_seed(speaking.seed)
    delays = torch.tensor(tiny.LAYOUT.delays[1:])
    firsts = tiny.FIRST_CODE + tiny.CODEBOOK_SIZE * torch.arange(tiny.NUM_CODEBOOKS)
    rows: list[Tensor] = []
    while len(rows) < speaking.max_rows and not bool((pointer.end + MAX_DELAY <= len(rows)).all()):
        row = len(rows)
        logits = network.code_logits(session.hidden)
        stream_0 = pointer.advance(
            network.text_logits(session.hidden[:count]), row, speaking.script_temperature, generator
        )
        if guided:
            logits = logits[count:] + speaking.guidance_scale * (logits[:count] - logits[count:])
        codes = draw_codes(logits[:count], speaking, generator) + firsts
        heard = (row >= delays) & (row - delays < pointer.end[:, None])
        codes = torch.where(heard, codes, tiny.PAD)
        rows.append(torch.cat([stream_0[:, None], codes, pointer.index(row)[:, None]], 1))
        session.step(torch.cat([rows[-1], _hidden(rows[-1])]) if guided else rows[-1])
    return _undelay(torch.stack(rows, 1).numpy(), pointer.end.tolist())


def _hidden(rows: Tensor) -> Tensor:
    """Return audio rows [B, 9] as the unconditional request reads them."""
    seen = rows.clone()
    seen[:, 0] = torch.where(rows[:, 0] >= tiny.FIRST_FRAME_TOKEN, tiny.NULL, rows[:, 0])
    seen[:, INDEX] = tiny.PAD
    return seen


def _undelay(rows: np.ndarray, ends: list[int]) -> list[Utterance]:
    """Return the utterances of rows [B, R, 9]. Those that did not end are cut to complete frames."""
    found = []
    for index, end in enumerate(ends):
        frames = min(end, rows.shape[1] - MAX_DELAY)
        streams = rows[index, :, FIRST_CODEC:LAST_CODEC]
        columns = [streams[delay : delay + frames, k] for k, delay in enumerate(tiny.LAYOUT.delays[1:])]
        codes = (np.stack(columns, 1) - tiny.FIRST_CODE) % tiny.CODEBOOK_SIZE
        phoneme_of_frame = rows[index, :frames, INDEX] - tiny.PHONEME_INDEX_BASE - 1
        found.append(Utterance(codes, phoneme_of_frame, end < rows.shape[1]))
    return found
