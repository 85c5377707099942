"""vLLM's private hooks that the plugin relies on. An upgrade that changes one of them fails here."""

import hashlib
import inspect
import textwrap
from collections.abc import Callable

import pytest

from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.core.sched.utils import check_stop  # noqa: E402
from vllm.v1.request import Request  # noqa: E402
from vllm.v1.worker.gpu.async_utils import AsyncOutput  # noqa: E402
from vllm.v1.worker.gpu.block_table import BlockTables  # noqa: E402
from vllm.v1.worker.gpu.model_runner import GPUModelRunner  # noqa: E402
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls  # noqa: E402
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker  # noqa: E402

# hook -> the first 12 hex digits of the SHA-256 of its source in vLLM 0.32.0
HOOKS: dict[Callable, str] = {
    Scheduler.schedule: "b858cfaada39",
    Scheduler._reserve_prefill_lookahead: "e73f7f59d237",
    Scheduler._get_local_prefix_cache_hit: "92a1e61daa31",
    Scheduler._preempt_request: "979be013f1f2",
    Scheduler._update_after_schedule: "b740cc318599",
    Scheduler._update_request_with_output: "201045cada17",
    Scheduler.update_from_output: "3c9751a0424f",
    Scheduler.finish_requests: "77866ce0b50a",
    Scheduler.add_request: "d44c6de45d62",
    AsyncScheduler._update_after_schedule: "43a8c1ed4cdc",
    AsyncScheduler._update_request_with_output: "5940a181b660",
    KVCacheManager.allocate_slots: "d49c19bc93d8",
    KVCacheManager.truncate_computed_blocks: "321cc616e954",
    Request.update_block_hashes: "eb9b965a74e8",
    check_stop: "5149b60c92d2",
    GPUModelRunner.add_requests: "498775128a92",
    GPUModelRunner.sample: "5585f4a055cf",
    GPUModelRunner.postprocess_sampled: "398d886b115a",
    GPUModelRunner.sample_tokens: "9a20d14a1b61",
    AsyncOutput.__init__: "312a24f056bd",
    AsyncOutput.get_output: "34ce61736794",
    PromptLogprobsWorker.compute_prompt_token_id_logprobs: "5fb4c66d01a3",
    BlockTables.gather_block_tables: "93ff9cd018fc",  # 0.33 makes `engine/worker/window_blocks.py` unnecessary
    resolve_model_state_cls: "c330e5807024",
}


def digest(hook: Callable) -> str:
    return hashlib.sha256(textwrap.dedent(inspect.getsource(hook)).encode()).hexdigest()[:12]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__qualname__)
def test_vllm_hooks_match_their_reviewed_digests(hook: Callable) -> None:
    assert digest(hook) == HOOKS[hook], "vLLM changed it: read it again, then pin the new digest"
