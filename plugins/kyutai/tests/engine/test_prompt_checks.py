"""Conditions and words that a model cannot read are refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

from plugins.kyutai.tests.small_families import KYUTAI_TTS, SMALL_TTS
from stretto.engine.prompt_checks import Capacity, check_prompt, known_ids
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.family.mechanism import Mechanism
from stretto.records.prompt import Condition, Prompt
from stretto.testing.checkpoints import make_prompt
from stretto_kyutai.kyutai_tts.mechanism.script import pack_word
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions

ROOMY = Capacity(num_blocks=100, block_size=32, max_num_seqs=16)


def refusal(prompt: Prompt, rules: SegmentRules) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_prompt(prompt, rules, ROOMY)
    return caught.value


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ((4,), np.zeros((1, 2), np.float32), r"condition\.ids: expected at most 4 ids in \[0, 4\), got \[4\]"),
        ((-1,), np.zeros((1, 2), np.float32), r"condition\.ids: .* got \[-1\]"),
        ((0,) * 5, np.zeros((1, 2), np.float32), r"condition\.ids: .* got \[0, 0, 0, 0, 0\]"),
        ((), np.zeros((4, 2), np.float32), r"condition\.vectors: expected float32 \[n <= 3, 2\], got float32 \[4, 2\]"),
        ((), np.zeros((1, 3), np.float32), r"condition\.vectors: .* got float32 \[1, 3\]"),
        ((), np.zeros(2, np.float32), r"condition\.vectors: .* got float32 \[2\]"),
        ((), np.zeros((1, 2)), r"condition\.vectors: expected float32 .* got float64 of magnitude 0"),
        ((), np.full((1, 2), np.nan, np.float32), r"condition\.vectors: .* of magnitude nan"),
        ((), np.full((1, 2), -10_001, np.float32), r".* of magnitude at most 10000, got float32 of magnitude 10001"),
    ],
)
def test_condition_must_fit_the_family(ids: tuple[int, ...], vectors: np.ndarray, message: str) -> None:
    family = replace(TINY, mechanism=Mechanism(conditions=SpeakerConditions(4, 3, 2)))
    prompt = replace(make_prompt(TINY, 0), condition=Condition(ids, vectors))
    assert re.match(message, str(refusal(prompt, SegmentRules(family, 512))))
    assert (
        str(refusal(prompt, SegmentRules(TINY, 512)))
        == "condition: expected no value (tiny has no conditions), got a value"
    )
    for fits in (Condition((3, 3), np.zeros((3, 2), np.float32)), Condition((), np.zeros((0, 2), np.float32)), None):
        check_prompt(replace(prompt, condition=fits), SegmentRules(family, 512), ROOMY)


@pytest.mark.parametrize("word", [pack_word([5, SMALL_TTS.wish_id], 1), pack_word([-1], 1), pack_word([5], -1)])
def test_words_have_only_text_ids(word: list[int]) -> None:
    rules = SegmentRules(KYUTAI_TTS, 160)
    prompt = make_prompt(KYUTAI_TTS, 1)
    good = pack_word([5, SMALL_TTS.wish_id - 1], 0)
    assert known_ids(good, rules) == good
    with pytest.raises(InvalidRequest, match=r"expected (token ids|words of tokens) in "):
        known_ids([*good, *word], rules)
    expected = f"track: expected words of tokens in [0, {SMALL_TTS.wish_id}), got "
    assert str(refusal(replace(prompt, track=(*good, *word, 0)), rules)).startswith(expected)
