r"""VITA-Audio prompts: ChatML, without the default system turn of Qwen 2.5.

    <|im_start|>role \n content <|im_end|> \n  …  <|im_start|>assistant \n

    tts            user       Convert the text to speech.\n text
    asr            user       Convert the speech to text.\n audio
    dialogue       user       text \n audio, or text only
    audio          <|begin_of_audio|> codes <|end_of_audio|>
    audio (Plus)   <|begin_of_audio|> <|context_of_audio|> … <|end_of_audio|>

Words and codes in an assistant turn alternate as in training (see `interleave`). Role, line end and content are
tokenized separately, as in training (`vita_audio/data/dataset_qwen2.py` in https://github.com/VITA-MLLM/VITA-Audio), so
the content of a spoken turn begins with its own newline. In VITA-Audio-Plus, each output row of the audio encoder
replaces one `<|context_of_audio|>` (`add_audio_input_contiguous` in that repository). The assistant's speech is encoded
as codes, as in the other releases.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from transformers.audio_utils import mel_filter_bank

from stretto.codecs.base import Codec
from stretto.encoders.whisper_vq import SpeechTokenizer, load_tokenizer
from stretto.errors import InvalidRequest
from stretto.families.vita_audio.family import HEARD, NUM_QUERIES, VitaVocabulary
from stretto.family.audio_format import KEY
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, codes_of, stream0_rows
from stretto.family.text import Subwords, TextTokenizer
from stretto.records.prompt import InputAudio

SAMPLE_RATE = 16_000
# samples
HOP = 160
WINDOW = 400
SPECTRUM = 512
NUM_BINS = 80
LOWEST_HZ = 20.0
# mel frames per stacked frame, and between the starts of stacked frames
STACKED = 7
STEP = 6
PREEMPHASIS = 0.97
LEAST = np.finfo(np.float32).eps
FULL_SCALE = 1 << 15
DITHER = 1.0  # the frontend's default, so that digital silence contains the same noise as in training


def stacked_log_mel(pcm: np.ndarray, audio: Mapping[str, Any], dither: float = DITHER) -> np.ndarray:
    """Return the encoder input for a recording, float32 [ceil(T / 6), 560] for T mel frames.

    Args:
        pcm: Mono samples [n >= WINDOW] at 16 kHz.
        audio: `audio_config` in config.json, with the `shift` and `scale` of each of the 560 features.
        dither: Standard deviation of the added noise in 16-bit steps. The noise is the same each time, so that the same
            audio always gives the same features.
    """
    mel = _log_mel(pcm, dither)
    around = STEP * np.arange(-(-len(mel) // STEP))[:, None] + np.arange(STACKED) - STACKED // 2
    stacked = mel[np.clip(around, 0, len(mel) - 1)].reshape(len(around), STACKED * NUM_BINS)
    shift, scale = (np.array(audio[name], np.float32) for name in ("shift", "scale"))
    return np.ascontiguousarray((stacked + shift) * scale, np.float32)


def _log_mel(pcm: np.ndarray, dither: float) -> np.ndarray:
    """Return log-mel frames, float32 [T, 80]; no frame extends beyond the waveform."""
    frames = sliding_window_view(pcm.astype(np.float32) * FULL_SCALE, WINDOW)[::HOP]
    if dither:
        frames = frames + dither * np.random.default_rng(0).standard_normal(frames.shape, np.float32)
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    spectrum = np.fft.rfft((frames - PREEMPHASIS * before) * np.hamming(WINDOW), SPECTRUM)
    return np.log(np.maximum(np.abs(spectrum) ** 2 @ _bank(), LEAST)).astype(np.float32)


@cache
def _bank() -> np.ndarray:
    """Return Kaldi triangular filters, [257, 80], evenly spaced in mel from LOWEST_HZ to half the sample rate."""
    top = SAMPLE_RATE / 2
    return mel_filter_bank(
        SPECTRUM // 2 + 1,
        NUM_BINS,
        LOWEST_HZ,
        top,
        SAMPLE_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )


SYSTEM_TEXT = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
INSTRUCTIONS = {"tts": "Convert the text to speech.\n", "asr": "Convert the speech to text."}
VOICE = "Your Voice: "


class VitaTemplate:
    """VITA-Audio prompt template.

    Args:
        ratio: Interleaving of text and codes, as in `VitaVocabulary`.
        audio: `audio_config` in config.json, if the checkpoint has an audio encoder.
    """

    def __init__(
        self,
        family: Family,
        subwords: Subwords,
        ratio: Sequence[int],
        tokenizer: SpeechTokenizer | None = None,
        audio: Mapping[str, Any] | None = None,
    ):
        self._family = family
        self._subwords = subwords
        self._ratio = ratio
        self._audio_config = audio
        self._encoder = None if tokenizer is None else CachedEncoder(tokenizer.encode)
        self._begin, self._end = (family.markers[name] for name in ("begin_of_audio", "end_of_audio"))

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows up to the reply. A dialogue without a system turn gets that of the authors' code."""
        ids = list[int]()
        features = list[np.ndarray]()
        if task.name == "dialogue" and pieces[0].role != "system":
            ids += self._turn("system", self._text(SYSTEM_TEXT, ""))
        for role, turn in groupby(pieces, lambda piece: piece.role):
            ids += self._turn(role, self._content(task, role, list(turn), features))
        ids += self._head("assistant")
        return PromptRows(stream0_rows(self._family.layout, ids), audios=self._audio_inputs(ids, features))

    def _head(self, role: str) -> list[int]:
        return [self._family.markers["im_start"], *self._text(role, ""), *self._text("\n", "")]

    def _turn(self, role: str, content: list[int]) -> list[int]:
        return [*self._head(role), *content, self._family.markers["im_end"], *self._text("\n", "")]

    def _content(self, task: Task, role: str, turn: list[Piece], features: list[np.ndarray]) -> list[int]:
        """Return the ids of a turn's content, and append the encoder input of its audio to `features`."""
        words = [piece for piece in turn if piece.text is not None]
        audio = [token for piece in turn if piece.text is None for token in self._audio(piece, features)]
        for piece in words:
            self._text(piece.text or "", piece.path)  # so that errors contain this piece's path
        text = "\n".join(piece.text or "" for piece in words)
        if role == "system":
            return [*self._text(VOICE, ""), *audio, *self._text("\n", "")] if audio else self._text(text, "system")
        if role == "assistant":
            return interleave(self._text(text, "assistant") if text else [], audio[1:-1], self._ratio, self._markers)
        instruction = INSTRUCTIONS.get(task.name, "")
        user_text = f"{instruction}{text}" + "\n" * bool(audio)
        return [*self._text(user_text, turn[0].path), *audio]

    @property
    def _markers(self) -> tuple[int, int]:
        return self._begin, self._end

    def _text(self, text: str, path: str) -> list[int]:
        return self._subwords.ids(text, path)

    def _audio(self, piece: Piece, features: list[np.ndarray]) -> list[int]:
        if self._audio_config is not None and piece.role != "assistant":
            features.append(self._features(piece, self._audio_config))
            rows = [self._family.markers[HEARD]] * (NUM_QUERIES + len(features[-1]))
            return [self._begin, *rows, self._end]
        first = self._family.layout.audio[0].start
        return [self._begin, *(self._codes(piece) + first).tolist(), self._end]

    def _features(self, piece: Piece, audio: Mapping[str, Any]) -> np.ndarray:
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "audio samples (VITA-Audio-Plus does not accept codes as input)", "codes")
        return stacked_log_mel(piece.pcm, audio)

    def _audio_inputs(self, ids: list[int], features: list[np.ndarray]) -> tuple[InputAudio, ...]:
        """Return an InputAudio for each array in `features`, located by its placeholders in `ids`."""
        context = self._family.markers.get(HEARD)
        firsts = [at for at, token in enumerate(ids) if token == context and ids[at - 1] == self._begin]
        return tuple(
            InputAudio(first, NUM_QUERIES + len(frames), frames) for first, frames in zip(firsts, features, strict=True)
        )

    def _codes(self, piece: Piece) -> np.ndarray:
        """Return the codes [T] of a recording, 12.5 per second."""
        codes = codes_of(piece, self._family, None if self._encoder is None else self._encoder.encode)
        return codes if piece.codes is None else codes[0]


def interleave(text: list[int], codes: list[int], ratio: Sequence[int], markers: tuple[int, int]) -> list[int]:
    """Interleave runs of text with runs of codes, and enclose each run of codes in `markers`.

    Runs have the sizes in `ratio` as long as both text and codes remain; the last pair of runs contains the rest.

    Args:
        ratio: Alternating numbers of text ids and of audio ids, including markers; the last pair is repeated.
        markers: Ids that mark the beginning and the end of audio.
    """
    if not codes:
        return text
    if not text:
        return [markers[0], *codes, markers[1]]
    ids = list[int]()
    word = 0
    code = 0
    turn = 0
    while word < len(text) and code < len(codes):
        num_words, num_codes = (sizes[min(turn, len(sizes) - 1)] for sizes in (ratio[::2], ratio[1::2]))
        next_word = word + num_words
        next_code = code + num_codes - 2
        if next_word >= len(text) or next_code >= len(codes):  # the last turn
            next_word = len(text)
            next_code = len(codes)
        ids += [*text[word:next_word], markers[0], *codes[code:next_code], markers[1]]
        word = next_word
        code = next_code
        turn = turn + 1
    return ids


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's text tokenizer and its audio tokenizer or encoder config."""
    config = config_at(checkpoint)
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    ratio = VitaVocabulary.from_record(config[VOCABULARY]).ratio
    tokenizer = load_tokenizer(checkpoint, len(family.layout.audio[0]), device)
    return VitaTemplate(family, subwords, ratio, tokenizer, config.get(KEY))
