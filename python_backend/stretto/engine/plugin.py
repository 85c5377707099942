"""Entry point `vllm.general_plugins`: vLLM calls `register` in every process that it starts."""

import gc

BACKBONES = "stretto.engine.models"
ARCHITECTURES = {
    "StrettoQwen2ForCausalLM": f"{BACKBONES}.qwen2:StrettoQwen2ForCausalLM",
    "StrettoQwen3ForCausalLM": f"{BACKBONES}.qwen3:StrettoQwen3ForCausalLM",
    "StrettoQwen3MoeForCausalLM": f"{BACKBONES}.qwen3_moe:StrettoQwen3MoeForCausalLM",
    "StrettoLlamaForCausalLM": f"{BACKBONES}.llama:StrettoLlamaForCausalLM",
    "StrettoOlmo2ForCausalLM": f"{BACKBONES}.olmo2:StrettoOlmo2ForCausalLM",
    "StrettoHiggsAudioForCausalLM": "stretto.families.higgs_audio.model:StrettoHiggsAudioForCausalLM",
    "StrettoValleForCausalLM": "stretto.families.valle.model:StrettoValleForCausalLM",
}


def register() -> None:
    """Register the model classes with vLLM and, without a GPU, replace its Triton kernels by CPU twins."""
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    # vLLM collects garbage eight times during start-up, each time over every imported module.
    gc.freeze()
    known = ModelRegistry.get_supported_archs()
    for name, path in ARCHITECTURES.items():
        if name not in known:
            ModelRegistry.register_model(name, path)
    if current_platform.is_cpu():
        from stretto.engine.kernels.cpu import install

        install()
