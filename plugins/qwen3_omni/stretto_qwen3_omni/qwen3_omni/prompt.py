r"""Prompts of Qwen3-Omni's thinker, in the format of its published chat template.

    <|im_start|>user\n<|audio_start|><|audio_pad|> … <|audio_end|>What is this?<|im_end|>\n<|im_start|>assistant\n

Consecutive pieces of the same role form one turn. Within a turn, everything between two recordings or images is
tokenised as one text, which includes the role before it: a text may begin with a line end, which then belongs to the
same token as the one after the role. Each recording has one `<|audio_pad|>` for each row of the audio encoder, and each
image one `<|image_pad|>` for each row of the image encoder, between `<|vision_start|>` and `<|vision_end|>`. Codes of
the assistant's earlier speech are left out, because the text of such a turn is in the prompt. Its earlier thoughts are
left out, too.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest, shown
from stretto.family.audio_format import KEY
from stretto.family.base import Family, Task
from stretto.family.image_format import KEY as IMAGE_KEY
from stretto.family.log_mel import SAMPLE_RATE, MelFormat, input_audio
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import TextTokenizer, check_no_markers, check_text
from stretto.records.prompt import InputAudio, InputImage
from stretto_qwen3_omni.qwen3_omni.family import ThinkerVocabulary
from stretto_qwen3_omni.qwen3_omni.image import Patches

THOUGHTS_END = "</think>"
MAX_IMAGES = 4  # in a request; the patches of one take up to 25 MB
MAX_AUDIO_S = 300  # maximum for all recordings in a request; their features take 51 kB/s


class ThinkerTemplate:
    """Prompt template of the thinker."""

    def __init__(
        self,
        family: Family,
        vocabulary: ThinkerVocabulary,
        tokenizer: TextTokenizer,
        audio_format: MelFormat | None,
        patches: Patches | None,
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._audio_format = audio_format
        self._patches = patches

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the conversation's rows and the first rows of the reply. There is no default system turn.

        If the reply is spoken, `PromptRows.voice` is the index of the voice in `Family.voices`.
        """
        vocabulary = self._vocabulary
        _check_total(pieces)
        ids = list[int]()
        audios = list[InputAudio]()
        images = list[InputImage]()
        for role, turn in groupby(pieces, lambda piece: piece.role):
            ids.append(vocabulary.im_start)
            text = f"{role}\n"
            path = ""
            for piece in _without_codes(list(turn)):
                if piece.pcm is None and piece.pixels is None:
                    text = text + self._checked(piece)
                    path = piece.path
                    continue
                if task.speaks and role != "user":  # the talker reads hidden states in user turns only
                    medium = "audio" if piece.pcm is not None else "an image"
                    expected = f"text in turns of the {role}, because the reply is spoken"
                    raise InvalidRequest(piece.path, expected, medium)
                ids += self._encoded(text, path)
                if piece.pcm is not None:
                    ids.append(vocabulary.audio_start)
                    audios.append(input_audio(piece.pcm, piece.path, len(ids), self._audio_format))
                    ids += [*[vocabulary.audio_pad] * audios[-1].num_rows, vocabulary.audio_end]
                elif piece.pixels is not None:
                    ids.append(vocabulary.image_start)
                    images.append(self._image(piece.pixels, piece.path, len(ids)))
                    ids += [*[vocabulary.image_pad] * images[-1].num_rows, vocabulary.image_end]
                text = ""
            ids += [*self._encoded(text, path), vocabulary.im_end, *self._encoded("\n", path)]
        ids += [vocabulary.im_start, *self._encoded("assistant\n", "")]
        spoken_by = self._family.voices.index(voice) if task.speaks and voice is not None else 0
        rows = stream0_rows(self._family.layout, ids)
        return PromptRows(rows, audios=tuple(audios), images=tuple(images), voice=spoken_by)

    def _image(self, pixels: np.ndarray, path: str, first_row: int) -> InputImage:
        """Return an image as the encoder's input; raise InvalidRequest if the checkpoint has no encoder."""
        if self._patches is None:
            raise InvalidRequest(path, "text or audio (this checkpoint has no image encoder)", "an image")
        return self._patches.read(pixels, path, first_row)

    def _checked(self, piece: Piece) -> str:
        """Return the text of a piece; raise InvalidRequest if it is missing, empty or too long."""
        if piece.text is None:
            raise InvalidRequest(piece.path, "text or audio samples (the model reads no codes)", "codes")
        check_text(piece.text, piece.path, self._family.max_text_chars)
        if not piece.text:
            raise InvalidRequest(piece.path, "text of at least one character", shown(piece.text))
        return without_thoughts(piece.text) if piece.role == "assistant" else piece.text

    def _encoded(self, text: str, path: str) -> Sequence[int]:
        ids = self._tokenizer.encode(text)
        check_no_markers(ids, self._vocabulary.markers, path)
        return ids


def without_thoughts(text: str) -> str:
    """Return an earlier reply without the thoughts before it, as the published chat template does."""
    _, end, reply = text.rpartition(THOUGHTS_END)
    return reply.lstrip("\n") if end else text


def _check_total(pieces: tuple[Piece, ...]) -> None:
    """Raise InvalidRequest if all recordings together are too long, or there are too many images."""
    heard = [piece for piece in pieces if piece.pcm is not None]
    seconds = sum(len(piece.pcm) for piece in heard if piece.pcm is not None) / SAMPLE_RATE
    if seconds > MAX_AUDIO_S:
        raise InvalidRequest(heard[-1].path, f"at most {MAX_AUDIO_S} s of audio in all turns", f"{seconds:.1f} s")
    seen = [piece for piece in pieces if piece.pixels is not None]
    if len(seen) > MAX_IMAGES:
        raise InvalidRequest(seen[-1].path, f"at most {MAX_IMAGES} images in all turns", f"{len(seen)} images")


def _without_codes(turn: list[Piece]) -> list[Piece]:
    """Return a turn without the codes of an assistant's speech. A reply that has only codes is read as empty."""
    return [piece for piece in turn if piece.codes is None or piece.role != "assistant"]


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template for a checkpoint."""
    config = config_at(checkpoint)
    vocabulary = ThinkerVocabulary.from_record(config[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_ids, checkpoint)
    record = config.get(KEY)
    audio_format = None if record is None else MelFormat.from_record(record)
    vision = config.get(IMAGE_KEY)
    return ThinkerTemplate(
        family, vocabulary, tokenizer, audio_format, None if vision is None else Patches.from_record(vision)
    )
