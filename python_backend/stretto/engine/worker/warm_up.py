"""Parameters for the requests that vLLM sends through the worker while it warms up its kernels.

This happens on GPUs only (`vllm/v1/worker/gpu/warmup.py`), before our first request and before graph capture: a few
prefill rows, then decode steps.
"""

import itertools
from dataclasses import replace

import numpy as np
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.request.params import SpeechParams
from stretto.engine.request.rules import SegmentRules

PREFIXES = ("_warmup_", "_v2_mixed_warmup_")
_ordinals = itertools.count()


def is_warm_up(request_id: str) -> bool:
    """Return True for vLLM's own requests, which take one token per step."""
    return request_id.startswith(PREFIXES)


def warmup_request(data: NewRequestData, rules: SegmentRules) -> tuple[SpeechParams, np.ndarray]:
    """Return parameters and codes [n, S - 1] for a request of vLLM's own, cycling through the family's tasks.

    Raises:
        TypeError: For any other request, which did not come through `SpeechLLM`.
    """
    if not is_warm_up(data.req_id):
        raise TypeError(f"{data.req_id} did not come through SpeechLLM: it has no speech parameters")
    family = rules.family
    task = family.tasks[next(_ordinals) % len(family.tasks)]
    sampling = replace(task.sampling, seed=0, guidance_scale=1.0, text=replace(task.sampling.text, max_rows=1))
    num_rows = len(data.prefill_token_ids or ())
    codes = np.full((num_rows, family.layout.num_input_streams - 1), family.layout.pad_id, np.int32)
    return SpeechParams(task.name, sampling, codes), codes
