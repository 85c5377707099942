"""The teacher: `hibari`, a text-to-speech program whose phonemes, durations and spectra the model learns.

Its graph ends in a linear head, which turns a vector per hop into spectra. `cut_teacher` leaves this head out and adds
the durations, so that a vector of 256 numbers per hop describes the speech completely. `render` applies the head.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.families.tiny.family import PHONEMES

HOPS_PER_UNIT = 2  # hops in a unit of the teacher's durations
PHONEME_ID = {name: index for index, name in enumerate(PHONEMES)}
PAUSE = PHONEME_ID["pau"]
NO_WORD = -1
GRAPH_FILE = "teacher.onnx"
HEAD_FILE = "head.npz"
HIDDEN = "/dec_norm/LayerNormalization_output_0"
PITCH = "f0"
DURATIONS = "/Clip_output_0"

CONSONANTS = {
    "b": "b", "d": "d", "f": "f", "h": "hh", "j": "y", "k": "k", "l": "l", "m": "m", "n": "n", "p": "p", "s": "s",
    "t": "t", "v": "v", "w": "w", "z": "z", "ɡ": "g", "ŋ": "ng", "ɹ": "r", "ʃ": "sh", "ʒ": "zh", "ð": "dh", "θ": "th",
    "ʤ": "jh", "ʧ": "ch", "T": "dx",
}  # fmt: skip
VOWELS = {
    "ɑ": "aa", "æ": "ae", "ʌ": "ah", "ɔ": "ao", "W": "aw", "I": "ay", "ɛ": "eh", "ɜ": "er", "A": "ey", "ɪ": "ih",
    "i": "iy", "O": "ow", "Y": "oy", "ʊ": "uh", "u": "uw", "ə": "ax", "ᵊ": "el", "ᵻ": "ix", "ɐ": "ac",
}  # fmt: skip
STRESSES = {"ˈ": "1", "ˌ": "2"}
PUNCTUATION = ",.?!"
LETTER_A = re.compile(r"\b(ay)\b", re.IGNORECASE)  # name of the letter, which the teacher would read as `eye`


@dataclass(frozen=True)
class Script:
    """A text with its pronunciation by the teacher.

    Attributes:
        text: Characters of the family, words in lower case.
        phonemes: Indices in PHONEMES.
        words: Word index of each phoneme; NO_WORD for a pause.
        sentences: The teacher's symbol ids of each sentence.
        owners: For each sentence, the index in `phonemes` to which each symbol belongs.
    """

    text: str
    phonemes: tuple[int, ...]
    words: tuple[int, ...]
    sentences: tuple[tuple[int, ...], ...]
    owners: tuple[tuple[int, ...], ...]


class Unreadable(ValueError):
    """Error for a text whose pronunciation by the teacher cannot be aligned with its words."""


class Reader:
    """Conversion of texts to scripts with the teacher's rules and lexicons."""

    def __init__(self) -> None:
        import json

        import hibari.g2p
        from hibari.tts import ASSETS

        self._g2p = hibari.g2p.G2P()
        self._ids: dict[str, int] = json.loads((Path(ASSETS) / "vocab.json").read_text())

    def _symbols(self, sentence: str) -> str:
        found: str = self._g2p(LETTER_A.sub(r"[\1](/ˈA/)", sentence), normalize_text=False)
        return found

    def script(self, sentences: list[str]) -> Script:
        """Return the script of sentences as in print, with capitals; raise Unreadable if it cannot be aligned."""
        phonemes: list[int] = []
        words: list[int] = []
        ids: list[tuple[int, ...]] = []
        owners: list[tuple[int, ...]] = []
        word = 0
        for sentence in sentences:
            ending = "" if sentence[-1] in PUNCTUATION else "."
            chunks = self._symbols(sentence + ending).split(" ")
            pieces = (sentence + ending).split(" ")
            if len(chunks) != len(pieces):
                raise Unreadable(sentence)
            owner = [len(phonemes)]  # of the teacher's first pause
            symbols = [0]
            if not phonemes or words[-1] != NO_WORD:
                phonemes.append(PAUSE)
                words.append(NO_WORD)
            else:
                owner = [len(phonemes) - 1]
            for place, (chunk, piece) in enumerate(zip(chunks, pieces, strict=True)):
                if place:
                    symbols.append(self._ids[" "])
                    owner.append(len(phonemes) - 1)
                self._chunk(chunk, piece, word, phonemes, words, symbols, owner)
                word += 1
            if words[-1] != NO_WORD:
                raise Unreadable(sentence)
            symbols.append(0)
            owner.append(len(phonemes) - 1)
            ids.append(tuple(symbols))
            owners.append(tuple(owner))
        text = " ".join(sentences).lower()
        return Script(text, tuple(phonemes), tuple(words), tuple(ids), tuple(owners))

    def _chunk(
        self,
        chunk: str,
        piece: str,
        word: int,
        phonemes: list[int],
        words: list[int],
        symbols: list[int],
        owner: list[int],
    ) -> None:
        """Append the symbols of one word and its punctuation."""
        spoken = chunk.rstrip(PUNCTUATION)
        if chunk[len(spoken) :] != piece[len(piece.rstrip(PUNCTUATION)) :] or not spoken:
            raise Unreadable(piece)
        stress = ""
        for symbol in spoken:
            symbols.append(self._ids[symbol])
            owner.append(len(phonemes))
            if symbol in STRESSES:
                stress = STRESSES[symbol]
                continue
            name = CONSONANTS.get(symbol) or VOWELS.get(symbol)
            if name is None:
                raise Unreadable(piece)
            if symbol in VOWELS:
                name += stress if name + stress in PHONEME_ID else ""
                stress = ""
            phonemes.append(PHONEME_ID[name])
            words.append(word)
        if stress:
            raise Unreadable(piece)
        for place, mark in enumerate(chunk[len(spoken) :]):
            symbols.append(self._ids[mark])
            if not place:
                phonemes.append(PAUSE)
                words.append(NO_WORD)
            owner.append(len(phonemes) - 1)

    def pronounce(self, word: str) -> tuple[int, ...]:
        """Return the phonemes of a word by itself, without pauses; raise Unreadable if it is read as several words."""
        script = self.script([word])
        return tuple(each for each, owner in zip(script.phonemes, script.words, strict=True) if owner != NO_WORD)


def cut_teacher(out: Path) -> None:
    """Write the teacher's graph without its head, and the head's weights, into `out`."""
    import onnx
    from hibari.tts import ASSETS
    from onnx import helper, numpy_helper

    model = onnx.load(Path(ASSETS) / "hibari.onnx")
    tables = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    name = "/head/Transpose_output_0"
    weight = tables[f"{name}_quantized"].astype(np.float32) - tables[f"{name}_zero_point"].astype(np.float32)
    np.savez(out / HEAD_FILE, weight=(weight * tables[f"{name}_scale"]).T, bias=tables["m.head.bias"])
    outputs = [HIDDEN, PITCH, DURATIONS]
    needed = set(outputs)
    nodes = []
    for node in reversed(model.graph.node):  # in topological order
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    graph = helper.make_graph(
        nodes[::-1],
        "teacher",
        [each for each in model.graph.input if each.name in needed],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [each for each in model.graph.initializer if each.name in needed],
        value_info=[each for each in model.graph.value_info if each.name in needed],  # the shapes, for fused operators
    )
    cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.save(cut, str(out / GRAPH_FILE))


@dataclass(frozen=True)
class Speech:
    """Speech of a script.

    Attributes:
        hidden: Vectors that the head turns into spectra, float16 [T, 256], one per hop.
        pitch_hz: Pitch in Hz, float16 [T]; below 40 for unvoiced hops.
        ends: Hop at which each phoneme ends, int32 [N].
    """

    hidden: np.ndarray
    pitch_hz: np.ndarray
    ends: np.ndarray


LEAD_HOPS = 4  # hops that are kept of the silence before the first sentence
GAP_HOPS = 8  # the same before each other sentence
TAIL_HOPS = 12  # maximum number of hops after the last phoneme


class Teacher:
    """The teacher's network without its head, on one core."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / GRAPH_FILE), options)

    def speak(self, script: Script, speed: float = 1.0) -> Speech:
        """Return the speech of a script, without most of the silence before each sentence."""
        hidden = []
        pitch_hz = []
        units = np.zeros(len(script.phonemes), dtype=np.int64)
        for index, (ids, owners) in enumerate(zip(script.sentences, script.owners, strict=True)):
            feed = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
            vectors, curve, durations = self._session.run(None, feed)
            hops = durations.reshape(-1).astype(np.int64) * HOPS_PER_UNIT
            cut = max(0, int(hops[0]) - (GAP_HOPS if index else LEAD_HOPS))
            hops[0] -= cut
            np.add.at(units, list(owners), hops)
            hidden.append(vectors[0, cut:].astype(np.float16))
            pitch_hz.append(curve[0, cut:].astype(np.float16))
        return Speech(np.concatenate(hidden), np.concatenate(pitch_hz), units.cumsum().astype(np.int32))


class Head:
    """The teacher's head, which computes the spectra of a hop from its vector."""

    def __init__(self, folder: Path, device: str) -> None:
        tables = np.load(folder / HEAD_FILE)
        self.weight = torch.from_numpy(tables["weight"]).to(device)
        self.bias = torch.from_numpy(tables["bias"]).to(device)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return log magnitude and phase of the voiced part and the rest, [..., 4, BINS]. It omits noise (-45 dB)."""
        values = hidden.float() @ self.weight.T + self.bias
        return values.unflatten(-1, (5, -1))[..., [0, 1, 3, 4], :]
