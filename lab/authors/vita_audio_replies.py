"""Generate a test fixture with greedy replies from VITA-Audio's reference code for all its schedules.

    VITA_SRC=VITA-Audio/vita_audio/models python -m lab.authors.vita_audio_replies tests/data/vita_audio_replies.json

The script requires a separate environment with transformers 4.48.3, and https://github.com/VITA-MLLM/VITA-Audio at
0abaf17. The reference model requires FlashAttention 2, which needs a GPU. On the CPU, the script uses a replacement
that applies the same causal mask, aligned to the lower right corner, and ignores the given mask. With any other
attention, the published code is wrong after the first multi-token step.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lab.authors.reply_fixture import Replies, equal_in, run
from lab.releases.random_vita import SMALL, tensors

SCHEDULES = {
    "vanilla": [8192, 0],
    "balance": [1, 4, 3, 8, 4, 10],
    "boost": [1, 10, 4, 10],
    "turbo": [1, 10],
    "more than modules": [1, 13],
    "one prefix": [2, 3, 1, 5],
}
SEED = 1
NUM_TOKENS = 64
PROMPTS = ([5, 7, 11, 3, 9, 21, 40], [280, 300, 7], [*range(20, 60)])
PENALTIES = (1.0, 1.05, 1.3)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, scaling: float = 1.0, **_: object
) -> tuple[Tensor, None]:
    """Apply causal attention, aligned to the lower right corner, from [B, heads, n, D] to [B, kv heads, t, D]."""
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, 1)
    value = value.repeat_interleave(groups, 1)
    new = query.shape[2]
    known = key.shape[2]
    scores = query @ key.transpose(2, 3) * scaling + torch.full((new, known), -math.inf).triu(known - new + 1)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def authors_model() -> Any:
    """Return the reference model with the small release's weights, in float64."""
    sys.path.insert(0, os.environ["VITA_SRC"])
    from qwen2_mtp_v4_48_3.configuration_qwen2 import Qwen2MTPConfig
    from qwen2_mtp_v4_48_3.modeling_qwen2 import Qwen2MTPForCausalLM
    from transformers import modeling_utils

    def enable(cls: type, config: Any, **_: object) -> Any:
        config._attn_implementation = "flash_attention_2"
        return config

    attention: Any = modeling_utils.ALL_ATTENTION_FUNCTIONS
    attention["flash_attention_2"] = attend
    base: Any = modeling_utils.PreTrainedModel
    base._check_and_enable_flash_attn_2 = classmethod(enable)
    names = {name: value for name, value in SMALL.items() if name not in ("architectures", "model_type", "torch_dtype")}
    model = Qwen2MTPForCausalLM(Qwen2MTPConfig(**names, bos_token_id=0, eos_token_id=None, pad_token_id=0))
    model.config._attn_implementation = "flash_attention_2"
    weights = {name: torch.from_numpy(tensor) for name, tensor in tensors(SMALL, SEED).items()}
    model.load_state_dict(weights)
    return model.double().eval()


@torch.no_grad()
def reply(model: Any, prompt: list[int], schedule: list[int], penalty: float) -> tuple[list[int], float]:
    """Return the ids of a greedy reply, and the smallest margin of an id over its runner-up."""
    model.generation_config.mtp_inference_mode = list(schedule)
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        repetition_penalty=penalty,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = torch.cat(found.scores).topk(2).values
    return found.sequences[0, len(prompt) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def replies() -> Replies:
    torch.set_num_threads(1)  # steps are too small to parallelise
    torch.set_default_dtype(torch.float64)
    model = authors_model()
    made = []
    for name, schedule in SCHEDULES.items():
        for prompt in PROMPTS:
            for penalty in PENALTIES:
                ids, lead = reply(model, prompt, schedule, penalty)
                made.append(
                    {"schedule": name, "prompt": prompt, "penalty": penalty, "ids": ids, "lead": round(lead, 6)}
                )
    return made


def write(fixture: Path, made: Replies) -> None:
    """Write the fixture, one reply per line, and print the smallest lead."""
    record = {"made_with": f"transformers {transformers.__version__}", "config": SMALL, "seed": SEED}
    lines = ",\n".join(json.dumps(each) for each in made)
    head = json.dumps(record | {"schedules": SCHEDULES})[:-1]
    fixture.write_text(f'{head}, "replies": [\n{lines}\n]}}\n')
    print(f"{len(made)} replies, smallest lead {min(each['lead'] for each in made)}")


def main() -> None:
    run(__doc__, replies, write, equal_in("schedule", "prompt", "penalty", "ids"))


if __name__ == "__main__":
    main()
