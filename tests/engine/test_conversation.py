"""Later turns of a conversation find all streams of the previous turn in the prefix cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.engine.harness import Engine
from tests.published_checkpoints import convert, write_opuslm
from tests.small_vocabularies import SMALL_OPUSLM

pytestmark = pytest.mark.engine
BLOCK = 32
FRAMES = 60
VOICE, HEARD = (np.random.default_rng(0).integers(12, size=(9, length)).tolist() for length in (40, 20))


def test_next_turn_reuses_the_last_reply_from_the_prefix_cache(tmp_path: Path) -> None:
    published = write_opuslm(tmp_path, backbone="llama", is_dialogue=True)
    tensors = torch.load(published.model, weights_only=True)
    # No frame may be a pad, which codes cannot express, or have the semantic token that a prompt writes as a pad.
    tensors["corelm.lm_head.weight"][[0, SMALL_OPUSLM.ssl[0]]] = 0
    torch.save(tensors, published.model)
    out = convert("opuslm-dialogue", published, tmp_path / "out")
    preprocessor = Preprocessor(out)
    said = {"role": "assistant", "text": "i am fine"}
    turns = [{"role": "system", "codes": VOICE}, {"role": "user", "text": "how are you?"}, said]
    options = {"audio": {"temperature": 0, "min_rows": FRAMES, "max_rows": FRAMES}, "seed": 1}
    first = preprocessor.prepare(RawRequest(messages=json.dumps(turns), task="speak", options=json.dumps(options)))
    cached: list[int] = []

    def see(running: Engine) -> None:
        stats = [request.prefill_stats for request in running.scheduler.running]
        cached.extend(each.num_local_cached_tokens for each in stats if each is not None)

    # Asynchronous, as the server: a prefill's statistics then outlive its step.
    with Engine(out, max_model_len=1024, async_scheduling=True) as engine:
        reply = np.array(engine.run({"first": first})["first"].rows)
        starts = [ids.start for ids in preprocessor.family.layout.audio]
        codes = [[int(reply[t + s, s]) - start for t in range(FRAMES)] for s, start in enumerate(starts)]
        turns[-1] = said | {"codes": codes}
        turns.append({"role": "user", "codes": HEARD})
        second = preprocessor.prepare(RawRequest(messages=json.dumps(turns), task="dialogue", options='{"seed": 1}'))
        engine.run({"second": second}, after_step=see)
    spoken = len(first.rows) + FRAMES
    np.testing.assert_array_equal(second.rows[:spoken], np.concatenate([first.rows, reply[:FRAMES]]))
    assert max(cached) >= spoken // BLOCK * BLOCK > len(first.rows)
