"""Generation follows the engine's rules."""

import numpy as np
import pytest
import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.corpus import Corpus, pack
from training.tiny.encoded import Spoken, Transcript
from training.tiny.generate import Speaking, speak, text_prompt, with_text, without_text
from training.tiny.network import Network, NetworkConfig
from training.tiny.sequences import phoneme_text

SMALL = NetworkConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                      intermediate_size=96)  # fmt: skip
PHONEMES = tuple(tiny.PHONEMES.index(name) for name in "pau ah1 p ae t pau".split())
TRANSCRIPT = Transcript("up at", PHONEMES, (-1, 0, 0, 1, 1, -1))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(SMALL).eval()


def test_generation_contexts_match_training() -> None:
    corpus = Corpus([pack([builders.tts(Spoken(TRANSCRIPT, "heart", np.arange(6)))])], torch.zeros(6, 7), True, "cpu")
    wanted, null = (
        corpus.batch(np.zeros(1, dtype=int), np.asarray([hidden])).ids[0].numpy() for hidden in (False, True)
    )
    context = with_text(text_prompt("up at", "heart"), phoneme_text(TRANSCRIPT)[0])
    assert (context == wanted[: len(context)]).all()
    assert (without_text(context) == null[: len(context)]).all()


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_generated_replies_end_after_every_script_entry(network: Network, scale: float) -> None:
    script = phoneme_text(TRANSCRIPT)[0]
    codes, ended = speak(network, ["up at", "up at"], "heart", Speaking(scale, seed=3), [script, script[:3]])
    assert ended == [True, True]
    assert [len(each) >= 6 - 3 * index for index, each in enumerate(codes)] == [True, True]
    assert all(each.min() >= 0 and each.max() < 256 for each in codes)
