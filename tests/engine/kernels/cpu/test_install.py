"""Stock vLLM on a small random checkpoint gives transformers' tokens, both with CPU twins and interpreted."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from triton.runtime import interpreter
from vllm import LLM, SamplingParams
from vllm.triton_utils import dispatcher

from stretto import cpu_backend as cpu_kernels
from stretto.cpu_backend import products
from tests.tiers import by_night

pytestmark = pytest.mark.engine

SIZES = {
    "vocab_size": 150, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.3, "eos_token_id": None,
}  # fmt: skip
PROMPTS = [[7, 3, 9], list(range(20, 90)), [5], list(range(100, 118))]
NUM_TOKENS = 6


@pytest.fixture(scope="module", params=["qwen3", *by_night("llama")])
def reference(request, tmp_path_factory) -> tuple[Path, PreTrainedModel]:
    torch.manual_seed(1)
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[request.param]
    path = tmp_path_factory.mktemp(request.param)
    reference = model(config(**SIZES)).float().eval()
    reference.save_pretrained(path)
    return path, reference


@pytest.fixture(scope="module")
def llm(reference) -> LLM:
    cpu_kernels.install()
    return LLM(
        str(reference[0]), skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=128,
        max_num_seqs=4, max_num_batched_tokens=32, block_size=32, kv_cache_memory_bytes=1 << 24,
        kernel_config={"ir_op_priority": products.IR_OP_PRIORITY},
    )  # fmt: skip


@pytest.fixture
def launches(monkeypatch) -> Iterator[list[str]]:
    """Record the names of the kernels that run in the interpreter."""
    names: list[str] = []
    launch = interpreter.GridExecutor.__call__

    def record(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", record)
    return names


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore every interpreted kernel in vLLM's modules."""
    for name in cpu_kernels.KERNELS:
        module, attribute = name.rsplit(".", 1)
        if attribute.endswith("_kernel"):  # the other is a launcher whose kernel does not run in the interpreter
            monkeypatch.setattr(import_module(module), attribute, dispatcher._registry[name][0])


def generate(llm: LLM, **sampling: object) -> list[list[int]]:
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False, **sampling)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_greedy_tokens_match_transformers(llm, reference, launches):
    expected = []
    for prompt in PROMPTS:
        ids = reference[1].generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False)
        expected.append(ids[0, len(prompt) :].tolist())
    assert generate(llm, temperature=0.0) == expected
    assert not launches, "no kernel of a step is interpreted"


def test_sampled_tokens_match_the_interpreted_kernels(llm, launches, monkeypatch):
    sampling = {
        "temperature": 0.8, "seed": 11, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "logprobs": 2,
        "min_tokens": 2, "stop_token_ids": [3], "logit_bias": {9: 2.0},
    }  # fmt: skip
    drawn = generate(llm, **sampling)
    assert not launches, "no kernel of a step is interpreted"
    with monkeypatch.context() as patch:
        interpret(patch)
        assert generate(llm, **sampling) == drawn
    names = {name.rsplit(".", 1)[1] for name in cpu_kernels.KERNELS}
    # Not launched here: the latter is for pooling models.
    assert set(launches) == names - {"_topk_topp", "_post_update_num_computed_tokens_kernel"}


def test_installing_twice_changes_nothing(llm):
    before = {name: dispatcher._registry[name] for name in dispatcher._registry}
    cpu_kernels.install()
    assert before == dispatcher._registry
