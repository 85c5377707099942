"""CPU versions, in numpy and torch, of the Triton kernels that vLLM's Model Runner V2 launches in a step.

Without a GPU, these kernels would run in Triton's interpreter, at about 60 ms per step. Each CPU version takes the same
arguments and writes the same results. Unsupported cases (speculative decoding, context parallelism) fail an assertion.
Kernels that ordinary steps do not launch (penalties, bad words, grammars, prompt log-probabilities) stay interpreted.
"""

import warnings
from collections.abc import Callable
from functools import cache

from stretto.cpu_backend import model_runner

ATTENTION = "stretto.cpu_backend.attention.InvariantAttentionBackend"
RUNNER = "vllm.v1.worker.gpu"
KERNELS: dict[str, Callable[..., None]] = {
    f"{RUNNER}.buffer_utils._apply_write_kernel": model_runner.apply_write,
    f"{RUNNER}.block_table._gather_block_tables_kernel": model_runner.gather_block_tables,
    f"{RUNNER}.block_table._compute_slot_mappings_kernel": model_runner.compute_slot_mappings,
    f"{RUNNER}.input_batch._prepare_prefill_inputs_kernel": model_runner.prepare_prefill_inputs,
    f"{RUNNER}.input_batch._prepare_pos_seq_lens_kernel": model_runner.prepare_pos_seq_lens,
    f"{RUNNER}.input_batch._combine_sampled_and_draft_tokens_kernel": model_runner.combine_sampled_and_draft_tokens,
    f"{RUNNER}.input_batch._get_num_sampled_and_rejected_kernel": model_runner.get_num_sampled_and_rejected,
    f"{RUNNER}.input_batch._post_update_kernel": model_runner.post_update,
    f"{RUNNER}.input_batch._post_update_num_computed_tokens_kernel": model_runner.post_update_num_computed_tokens,
    f"{RUNNER}.sample.gumbel._temperature_kernel": model_runner.apply_temperature,
    f"{RUNNER}.sample.gumbel._gumbel_sample_kernel": model_runner.gumbel_sample,
    f"{RUNNER}.sample.min_p._min_p_kernel": model_runner.apply_min_p,
    f"{RUNNER}.sample.logit_bias._bias_kernel": model_runner.apply_logit_bias,
    f"{RUNNER}.sample.logprob._topk_log_softmax_kernel": model_runner.topk_log_softmax,
    f"{RUNNER}.sample.logprob._ranks_kernel": model_runner.ranks,
    "vllm.v1.sample.ops.topk_topp_triton._topk_topp": model_runner.apply_top_k_top_p,
}


@cache
def install() -> None:
    """Make vLLM use the CPU versions and our attention backend in this process if its platform is the CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    # This module patches torch for vLLM's runner, so it is imported before the runner's modules.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from stretto.cpu_backend import products  # noqa: F401  (registers its norms on import)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the registry's search accesses deprecated torch names
        register_kernels(KERNELS)
    register_backend(AttentionBackendEnum.CPU_ATTN, ATTENTION)
