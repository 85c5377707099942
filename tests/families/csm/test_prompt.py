"""CSM prompts equal those of transformers' processor and model; refusals mention the unsupported turn."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stretto.errors import InvalidRequest
from stretto.families.csm.convert import CODES as TABLE
from stretto.families.csm.convert import CODES_OF_BACKBONE
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.weights.loading import open_tensors
from tests.published_csm import (
    BEGIN,
    CODEBOOK_SIZE,
    END,
    END_OF_AUDIO,
    NUM_CODEBOOKS,
    PAD,
    CsmReference,
    convert,
    make_model,
    write_release,
)

PCM = (np.sin(np.arange(9_000) ** 1.3 / 300) / 2).astype(np.float32)  # 4.7 frames
CODES = np.random.default_rng(0).integers(CODEBOOK_SIZE, size=(NUM_CODEBOOKS, 3)).tolist()


@dataclass(frozen=True)
class Made:
    """A converted release and the objects that read it."""

    preprocessor: Preprocessor
    reference: CsmReference

    def rows(self, task: str, options: dict[str, Any] | None = None, **inputs: Any) -> np.ndarray:
        return self.preprocessor.prepare(RawRequest(task=task, options=json.dumps(options or {}), **inputs)).rows

    def ids(self, text: str) -> list[int]:
        """Return a turn's words as the chat template encodes them."""
        return [BEGIN, *self.preprocessor.template._subwords.ids(text, "text"), END]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    checkpoint, _, reference = convert(tmp_path_factory.mktemp("csm"), make_model())
    return Made(Preprocessor(checkpoint), reference)


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


def talk(*turns: dict[str, Any]) -> str:
    return json.dumps(turns)


def test_csm_text_prompt_has_the_speaker_tag(made: Made) -> None:
    rows = made.rows("tts", text="a well")
    assert rows[:, 0].tolist() == made.ids("[0]a well")
    assert (rows[:, 1:] == PAD).all()
    assert made.rows("tts", {"voice": "1"}, text="a well")[:, 0].tolist() == made.ids("[1]a well")


@pytest.mark.parametrize("length", [1920, 1921, 3839, 7919, 9_000])
def test_csm_conversation_embeddings_match_transformers(made: Made, length: int) -> None:
    """The conversation has the user's text and audio, the assistant's text, and the text to speak."""
    turns = (
        turn("user", audio="pcm_in", text="how are you?"),
        turn("assistant", text="fine"),
        turn("assistant", text="a well"),
    )
    pcm = PCM[:length]
    rows = made.rows("speak", messages=talk(*turns), pcm_in=pcm, sample_rate=24_000)
    model = made.reference.model
    heard = model.codec_model.encode(torch.from_numpy(pcm)[None, None], num_quantizers=NUM_CODEBOOKS).audio_codes
    ids = [*made.ids("[1]how are you?"), *[PAD] * heard.shape[2], END_OF_AUDIO]  # the pad is a placeholder for audio
    ids += [*made.ids("[0]fine"), *made.ids("[0]a well")]
    merged = model._merge_input_ids_with_input_values(
        torch.tensor([ids]), torch.from_numpy(pcm)[None, None], torch.tensor([[length]])
    )
    torch.testing.assert_close(made.reference.embeds(torch.from_numpy(rows).long()), merged["inputs_embeds"][0])


def test_csm_prompt_has_codes_for_audio_and_the_assistant_speaker_id(made: Made) -> None:
    turns = turn("assistant", text="fine", codes=CODES), turn("user", text="why?"), turn("assistant", text="so")
    rows = made.rows("speak", {"voice": "1"}, messages=talk(*turns))
    words = made.ids("[1]fine")
    frames = rows[len(words) : len(words) + 4] - [ids.start for ids in made.preprocessor.family.layout.audio]
    assert frames.tolist() == [*np.array(CODES).T.tolist(), [0] * NUM_CODEBOOKS]
    assert rows[len(words) + 4 :, 0].tolist() == [*made.ids("[0]why?"), *made.ids("[1]so")]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": ""}, "text: expected text of at least one character"),
        ({"text": "a", "options": '{"voice": "2"}'}, "options.voice: expected one of 0, 1"),
        (
            {"messages": talk(turn("user", codes=CODES), turn("assistant", text="a"))},
            "messages[0].codes: expected audio together with its transcript",
        ),
        (
            {"messages": talk(turn("assistant", text="a", codes=CODES))},
            "messages[0].codes: expected only text to speak in the last turn, got audio",
        ),
        (
            {"messages": talk(turn("user", text="b", codes=CODES[:4]), turn("assistant", text="a"))},
            f"messages[0].codes: expected {NUM_CODEBOOKS} streams, got 4 streams",
        ),
        (
            {"messages": talk(turn("user", text="b", codes=[*CODES[:5], [99] * 3]), turn("assistant", text="a"))},
            f"messages[0].codes[5]: expected codes in [0, {CODEBOOK_SIZE})",
        ),
        ({"text": "o " * 300}, "text: expected a prompt of at most 255 rows"),
    ],
)
def test_invalid_input_error_names_its_field(made: Made, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        made.preprocessor.prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)


def test_csm_code_embedding_tables_may_be_tied(tmp_path: Path) -> None:
    """Files contain the backbone's table, the depth decoder's or both; if tied, they are equal."""
    model = make_model()
    tables = model.backbone_model.embed_tokens.embed_audio_tokens, model.depth_decoder.model.embed_tokens
    tables[0].weight.copy_(tables[1].weight)
    release = write_release(tmp_path / "release", model)
    both = open_tensors(release.convert(tmp_path / "both"))
    index = release.folder / "transformers.safetensors.index.json"
    published = dict(open_tensors(index))
    for table in (TABLE, CODES_OF_BACKBONE):
        held = {name: tensor for name, tensor in published.items() if name != table}
        save_file(held, release.folder / "one.safetensors")
        index.write_text(json.dumps({"weight_map": dict.fromkeys(held, "one.safetensors")}))
        alone = open_tensors(release.convert(tmp_path / table))
        assert alone.keys() == both.keys()
        assert all(torch.equal(alone[name], both[name]) for name in both)
