"""A window of repetition-aware sampling does not reach into the codes of a prompt."""

from dataclasses import replace

import numpy as np
import pytest

from stretto.engine.prompt_checks import Capacity, check_prompt
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.records.prompt import Prompt
from stretto_higgs_audio.higgs_audio.family import HiggsAudioVocabulary, higgs_audio
from stretto_higgs_audio.higgs_audio.prompt import audio_rows

ROOMY = Capacity(num_blocks=100, block_size=32, max_num_seqs=16)


def test_repetition_window_may_not_reach_into_prompt_audio() -> None:
    family = higgs_audio(HiggsAudioVocabulary())
    rules = SegmentRules(family, 512)
    words = np.full((4, 8), family.layout.pad_id, np.int32)
    heard = audio_rows(family.layout, np.ones((8, 3), np.int64))
    begins = np.array([[begin for begin, _ in family.layout.extra]], np.int32)
    cases = ([words, heard, words], 10, True), ([words, heard], 9, False), ([words], 512, False)
    for rows, window, is_refused in cases:
        sampling = replace(family.tasks[0].sampling, ras_window=window)
        prompt = Prompt("tts", np.concatenate([*rows, begins]), sampling)
        if is_refused:
            message = (
                "options.audio.ras_window: expected an integer in [0, 9], because the prompt contains audio, got 10"
            )
            with pytest.raises(InvalidRequest) as caught:
                check_prompt(prompt, rules, ROOMY)
            assert str(caught.value) == message
        else:
            assert check_prompt(prompt, rules, ROOMY) == prompt
