"""IndexTTS-2 through the real server: codes equal a slow loop, and samples those of the codec alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.indextts2.lab.random_gpt import CONFIG, NUM_CODES, language_model
from plugins.indextts2.lab.random_indextts2 import convert
from stretto.codecs.base import RecordedVoices, Window, load_codec
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto_client import SpeechClient
from stretto_contract.finish_reasons import limit_of
from tests.recordings import speech
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.published import cut
from tests.server.test_qwen3_tts import wav

# By night: test_indextts2.py of this plug-in compares the same release with the authors' replies, and its codec has
# tests of its own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
RATE = 22_050
MAX_CODES = 30


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("indextts2")
    checkpoint = convert(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def inputs(text: str) -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording."""
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": text}]
    samples = speech(2 * RATE, RATE)
    return {"messages": json.dumps(turns), "pcm_in": samples, "sample_rate": np.array([RATE], np.int32)}


def prepared(checkpoint: Path, text: str, options: Mapping[str, Any]) -> Prompt:
    """Return the prompt that the server's preprocessor writes."""
    fields = inputs(text) | {"sample_rate": RATE, "options": json.dumps(options)}
    return Preprocessor(checkpoint).prepare(RawRequest(**fields))


def hidden_states(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the normalised hidden states [T, H] of rows [T, H]."""
    heads = CONFIG["gpt"]["heads"]

    def norm(name: str, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, rows.shape[1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def product(name: str, rows: Tensor) -> Tensor:
        return rows @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    for number in range(CONFIG["gpt"]["layers"]):
        layer = f"gpt.h.{number}"
        fused = product(f"{layer}.attn.c_attn", norm(f"{layer}.ln_1", x)).unflatten(1, (3, heads, -1))
        query, key, value = fused.permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + product(f"{layer}.attn.c_proj", attended.transpose(0, 1).flatten(1))
        inner = F.gelu(product(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", x)), approximate="tanh")
        x = x + product(f"{layer}.mlp.c_proj", inner)
    return norm("final_norm", norm("gpt.ln_f", x))


def slow_codes(text: list[int], rows: Tensor, penalty: float) -> list[int]:
    """Return the most probable codes for the ids of a text and the rows of a voice, without a cache."""
    tensors = language_model()
    words = torch.tensor([0, *text, 1])
    positions = tensors["mel_pos_embedding.emb.weight"]
    embedded = tensors["text_embedding.weight"][words] + tensors["text_pos_embedding.emb.weight"][: len(words)]
    start = tensors["mel_embedding.weight"][NUM_CODES] + positions[0]
    x = torch.cat([rows, tensors["speed_emb.weight"].flip(0), embedded, start[None]])
    codes = list[int]()
    seen = {1, NUM_CODES}
    while len(codes) < MAX_CODES:
        logits = F.linear(hidden_states(tensors, x)[-1], tensors["mel_head.weight"], tensors["mel_head.bias"])
        for code in seen:
            logits[code] = logits[code] / penalty if logits[code] > 0 else logits[code] * penalty
        code = int(logits.argmax())
        if code == NUM_CODES + 1:
            break
        x = torch.cat([x, (tensors["mel_embedding.weight"][code] + positions[2 + len(codes)])[None]])
        codes.append(code)
        seen.add(code)
    return codes


@pytest.mark.parametrize("instruct", ["", "sad 0.7"])
def test_served_codes_equal_a_slow_loop_and_samples_the_codec_alone(served: ServedCheckpoint, instruct: str) -> None:
    text = "Hello there, how are you?"
    audio = {"temperature": 0.0, "max_rows": MAX_CODES}
    options = {"seed": 3, "repetition_penalty": 10.0, "audio": audio, "output": {"codes": True}, "instruct": instruct}
    answer = served.server.ask(options, **inputs(text))
    assert answer.error is None
    prompt = prepared(served.checkpoint, text, options)
    assert prompt.sound is not None
    ids, rows = prompt.sound.prompt
    expected = slow_codes(
        ids.tolist(), torch.from_numpy(rows.copy()).unflatten(0, (len(prompt.audios[0].features), -1)), 10.0
    )
    codes = [code for code in answer.codes[0].tolist() if code < NUM_CODES]
    assert codes == [code for code in expected if code < NUM_CODES]
    codec = load_codec("indextts2", served.checkpoint)
    assert isinstance(codec, RecordedVoices)
    number = codec.add_voice(*prompt.sound.arrays(), *prompt.sound.prompt)
    state = torch.full((1, 1), float(number))
    whole = codec.decode(Window(torch.tensor([[codes]]), 0, 0, torch.zeros(1), state))[0][0].numpy()
    (pcm,) = answer.sounds
    whole = cut(whole, codec.spec) if limit_of(answer.report) else whole
    np.testing.assert_allclose(pcm, whole, atol=1e-4)
    assert np.abs(whole).max() > 1e-3
    assert answer.events[-1]["sample_rate"] == RATE


async def test_client_sends_a_voice_and_an_emotion(served: ServedCheckpoint) -> None:
    """The call is that of the page; the reply differs from one with the emotion of the voice."""
    voice = wav(speech(2 * RATE, RATE), RATE)
    mood = wav(speech(2 * RATE, RATE)[::-1].copy(), RATE)
    system = {"role": "system", "audio": "audio"}
    options: dict[str, Any] = {"seed": 3, "audio": {"max_rows": MAX_CODES}}

    async with SpeechClient(f"localhost:{served.server.grpc}") as client:

        async def heard(turn: dict[str, Any], *recordings: bytes, **others: Any) -> np.ndarray:
            stream = client.converse([system, turn], *recordings, **options, **others)
            return np.concatenate([event.pcm async for event in stream if event.pcm is not None])

        plain = await heard({"role": "user", "text": "Hello."}, voice)
        turn = {"role": "user", "audio": "audio", "text": "Hello."}
        moved = await heard(turn, voice, mood, exaggeration=0.6)
        same = await heard(turn, voice, mood, exaggeration=0.0)
    np.testing.assert_allclose(same, plain, atol=1e-4)
    assert moved.shape != plain.shape or np.abs(moved - plain).max() > 1e-3
