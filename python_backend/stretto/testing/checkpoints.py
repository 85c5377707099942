"""Randomly initialised checkpoints, and prompts for them.

The weights are large enough that the largest logit exceeds the second largest by a clear margin.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from stretto.family.base import DepthSpec, Family
from stretto.records.prompt import Condition, Prompt
from stretto.records.sampling import LatentSampling
from stretto.streams.layout import LatentSpec, Segment, StreamLayout, words_of

BACKBONES = ("qwen3", "llama", "olmo2")


def write_checkpoint(
    folder: Path,
    family: Family,
    name: str,
    hidden: int = 128,
    layers: int = 3,
    seed: int = 0,
    backbone: str = "qwen3",
    audio_config: dict[str, Any] | None = None,
    vocabulary: Mapping[str, Any] | None = None,
    heads: int = 4,
    kv_heads: int = 2,
) -> Path:
    """Write a checkpoint with random weights and return its folder.

    Args:
        backbone: `qwen3`, `llama` or `olmo2`.
        vocabulary: Value of `speech_vocabulary` in config.json, or None.
    """
    inner = 2 * hidden
    head_dim = max(32, hidden // heads)  # vLLM's CPU attention does not support smaller heads
    config = {
        "architectures": [f"Stretto{backbone.capitalize()}ForCausalLM"],
        "model_type": backbone,
        "speech_family": name,
        "vocab_size": family.layout.vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": family.max_model_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": family.depth is not None,  # the heads are then among the depth transformer's tensors
        "dtype": "float32",
    }
    generator = torch.Generator().manual_seed(seed)
    weights = _weights(config, generator)
    if family.has_stream_bias:
        shape = family.layout.num_output_streams, hidden
        weights["stream_bias.weight"] = torch.randn(shape, generator=generator) * 0.5
    if family.depth is not None:
        del weights["lm_head.weight"]
        weights |= _depth_weights(family.depth, family.layout, hidden, 1 - _ends_itself(family), generator)
    if family.mechanism.conditions is not None:
        weights |= family.mechanism.conditions.reference().random_weights(config, generator)
    if vocabulary is not None:
        config["speech_vocabulary"] = dict(vocabulary)
    if audio_config is not None:
        config["audio_config"] = audio_config
        weights |= _audio_weights(audio_config, hidden, generator)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def _ends_itself(family: Family) -> bool:
    """Return True if a whole frame, a given recording or a rule ends the audio, not a sampled stream-0 id."""
    return bool(family.end_frame) or family.code_track is not None or family.drawing.ends_audio


def _depth_weights(
    spec: DepthSpec, layout: StreamLayout, hidden: int, num_ends: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the tensors of a depth transformer, named as `stretto convert` writes them."""
    wide = spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    others = layout.num_output_streams - 1

    def random(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weights = {
        "depth.first_head": random(
            len(layout.audio[0]) + num_ends, spec.hidden if spec.num_first else hidden, scale=0.3
        ),
        "depth.embed": random(sum(map(len, layout.audio[:-1])) + spec.num_second_ids, spec.hidden, scale=0.5),
        "depth.heads": random(others, layout.codebook_size, spec.hidden, scale=0.3),
    }
    if not spec.schedule:
        weights["depth.norm.weight"] = torch.ones(spec.hidden)
    if spec.random_weights is not None:
        return weights | spec.random_weights(random)
    if spec.projection is not None:
        size = max(spec.num_sets, 1) * spec.hidden
        weights["depth.project.weight"] = random(size, hidden, scale=hidden**-0.5)
    if spec.projection == "biased":
        weights["depth.project.bias"] = random(spec.hidden, scale=0.2)
    shapes = {"q_proj": (wide, spec.hidden), "k_proj": (keys, spec.hidden), "v_proj": (keys, spec.hidden)}
    shapes |= {"o_proj": (spec.hidden, wide), "down_proj": (spec.hidden, spec.intermediate)}
    shapes |= dict.fromkeys(("gate_proj", "up_proj"), (spec.intermediate, spec.hidden))
    for layer in range(spec.num_layers):
        for prefix in [f"sets.{index}." for index in range(spec.num_sets)] or [""]:
            for name, shape in shapes.items():
                weights[f"depth.layers.{layer}.{prefix}{name}.weight"] = random(*shape, scale=1.5 * shape[1] ** -0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"depth.layers.{layer}.{name}.weight"] = torch.ones(spec.hidden)
        for name in ("q_norm", "k_norm") if spec.has_head_norms else ():
            weights[f"depth.layers.{layer}.{name}.weight"] = torch.linspace(0.8, 1.2, spec.head_dim)
    return weights


def _audio_weights(audio_config: dict[str, Any], hidden: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    # takes seconds
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    tower = Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**audio_config))
    shapes = {f"audio_tower.{name}": tensor.shape for name, tensor in tower.state_dict().items()}
    shapes |= {
        "adaptor.weight": torch.Size((hidden, audio_config["output_dim"])),
        "adaptor.bias": torch.Size((hidden,)),
    }
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else shape[1:].numel() ** -0.5)
        for name, shape in shapes.items()
    }


def _weights(config: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    hidden = config["hidden_size"]
    inner = config["intermediate_size"]
    head_dim = config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim

    def random(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    vocab_size = config["vocab_size"]
    weights = {
        "model.embed_tokens.weight": random(vocab_size, hidden, 0.5),
        "lm_head.weight": random(vocab_size, hidden, 0.3),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for name, (rows, columns) in shapes.items():
            weights[f"{prefix}{name}.weight"] = random(rows, columns, 1.5 * columns**-0.5)
        for name, weight in _norms(config).items():
            weights[f"{prefix}{name}.weight"] = weight
    return weights


def _norms(config: dict) -> dict[str, torch.Tensor]:
    """Return a layer's norm weights by name; OLMo's vary along the width, because tensor parallelism splits them."""
    hidden = config["hidden_size"]
    head_dim = config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    before = {"input_layernorm": torch.ones(hidden), "post_attention_layernorm": torch.ones(hidden)}
    match config["model_type"]:
        case "qwen3":
            return {"self_attn.q_norm": torch.ones(head_dim), "self_attn.k_norm": torch.ones(head_dim), **before}
        case "olmo2":
            sizes = {"self_attn.q_norm": queries, "self_attn.k_norm": keys}
            sizes |= {"post_attention_layernorm": hidden, "post_feedforward_layernorm": hidden}
            return {name: torch.linspace(0.9, 1.1, size) for name, size in sizes.items()}
    return before


LENGTHS = (5, 17, 40, 70)
TRACK_LENGTHS = (9, 0, 30, 4, 100)


def make_prompt(family: Family, index: int, task: str | None = None, **changes: Any) -> Prompt:
    """Return test prompt number `index`. Lengths, tasks, guidance and temperatures vary with different periods.

    Args:
        index: Number of the prompt, also used as the seed of its ids.
        **changes: Fields of `SamplingConfig` to override.
    """
    tasks = [known_task.name for known_task in family.tasks]
    task = task or tasks[index % len(tasks)]
    if family.layout.latents is not None:
        return _latent_prompt(family, family.layout.latents, index, task, changes)
    random = np.random.default_rng(index)
    shape = LENGTHS[index % len(LENGTHS)], family.layout.num_input_streams
    rows = np.full(shape, family.layout.pad_id, np.int32)
    rows[:, 0] = random.integers(16, 47, len(rows))
    if Segment.AUDIO not in family.task(task).segments:
        _fill_with_audio(rows, family, random)
    temperature = (0.0, 0.9)[index // 2 % 2]
    steps = family.mechanism.steps
    schedules = (None, *(() if steps is None else steps.names))
    sampling = family.task(task).sampling
    is_guidable = family.guided_streams and family.task(task).has_audio_segment
    max_text_rows = 12 + index % 7
    max_rows = 20 + index % 9
    if not family.reads_text_by_row:  # given rows and pads count as well
        max_rows += 50
    if family.code_track is not None and index % 4:  # most replies end with their recording
        max_text_rows = sampling.text.max_rows
        max_rows = sampling.audio.max_rows
    sampling = replace(
        sampling,
        text=replace(sampling.text, min_rows=5, max_rows=max_text_rows, temperature=temperature),
        audio=replace(sampling.audio, min_rows=5, max_rows=max_rows, temperature=temperature, top_k=10, top_p=0.9),
        guidance_scale=(2.0, 1.0, 3.0)[index % 3] if is_guidable else 1.0,
        script_temperature=temperature if "script_temperature" in family.options else 1.0,
        seed=1000 + index,
        schedule=schedules[index % min(4, len(schedules))],
    )
    delayed_tail = None
    if family.layout.initial and family.layout.max_delay and not family.warm_up.is_sampled:
        # delayed streams continue with initial ids
        initial = np.full((1, family.layout.num_input_streams - 1), family.layout.pad_id, np.int32)
        initial[:, : len(family.layout.initial) - 1] = family.layout.initial[1:]
        delayed_tail = np.repeat(initial, family.layout.max_delay, 0)
    if not family.warm_up.is_sampled and task == "audio_lm":  # the reply continues the audio of the prompt
        delayed_tail = np.stack([random.integers(ids.start, ids.stop, 8) for ids in family.layout.audio[1:]], 1)
        delayed_tail = delayed_tail.astype(np.int32)
    optional: dict[str, Any] = {"delayed_tail": delayed_tail, "track": make_track(family, index)}
    return Prompt(task, rows, replace(sampling, **changes), condition=make_condition(family, index), **optional)


def _latent_prompt(family: Family, latents: LatentSpec, index: int, task: str, changes: dict[str, Any]) -> Prompt:
    """Return a prompt for a family whose frames are latents; steps, noise and guidance vary with `index`.

    If `index` is odd, the prompt ends with frames or, in a family whose prompts end with an id of their own
    (`DrawRules.prompt_end`), with latents of a recording and this id.
    """
    size = family.latent_size
    last = family.drawing.prompt_end
    random = np.random.default_rng(index)
    rows = np.zeros((LENGTHS[index % len(LENGTHS)], family.layout.num_input_streams), np.int32)
    rows[:, 0] = random.integers(16, 47, len(rows))
    if index % 2:
        at = slice(-4, None) if last is None else slice(-5, -1)
        rows[at, 0] = family.layout.audio[0].start if last is None else latents.voice_ids.start
        rows[at, 1 : 1 + size] = words_of(random.standard_normal((4, size)))
    if last is not None:
        rows[-1, 0] = last
    defaults = family.task(task).sampling
    steps = latents.steps
    temperature = (0.0, 0.9)[index // 2 % 2]
    scale = (2.0, 1.0, 3.0)[index % 3]
    if latents.has_unit_noise:
        temperature = 1.0
    latent_sampling = LatentSampling(
        steps=steps[index % min(len(steps), 4)],
        tail_rows=1 + index % 3,
        guidance_scale=scale if family.guides_rows else 1.0,
    )
    audio = replace(defaults.audio, min_rows=5, max_rows=20 + index % 9, temperature=temperature)
    sampling = replace(defaults, audio=audio, latents=latent_sampling, seed=1000 + index)
    if family.guided_streams:
        sampling = replace(sampling, guidance_scale=scale)
    return Prompt(task, rows, replace(sampling, **changes))


def make_condition(family: Family, index: int) -> Condition | None:
    """Return the condition of test prompt `index`; None in families without conditions."""
    conditions = family.mechanism.conditions
    condition: Condition | None = None if conditions is None else conditions.reference().random_condition(index)
    return condition


def make_track(family: Family, index: int) -> tuple[int, ...]:
    """Return the ids of a streamed text, or a recording's codes, for a test prompt; empty in other families.

    The text is often shorter than the reply, and sometimes longer.
    """
    track = family.text_track
    random = np.random.default_rng(index)
    codes = family.code_track
    if codes is not None:
        shape = 20 + 7 * (index % 5), len(codes.streams)
        return tuple(random.integers(16, family.layout.vocab_size, shape).reshape(-1).tolist())
    if track is None:
        return ()
    if track.random_text is not None:
        return (*track.random_text(index), track.end_id)
    return (*random.integers(16, 47, TRACK_LENGTHS[index % len(TRACK_LENGTHS)]).tolist(), track.end_id)


def _fill_with_audio(rows: np.ndarray, family: Family, random: np.random.Generator) -> None:
    """Write random codes to every stream after the first, as in a prompt with audio."""
    for stream, ids in enumerate(family.layout.audio[1:], 1):
        rows[1:-1, stream] = random.integers(ids.start, ids.stop, len(rows) - 2)
    if not family.track_streams:  # such as a pointer
        shape = len(rows) - 2, family.layout.num_input_only
        rows[1:-1, family.layout.num_output_streams :] = random.integers(16, 47, shape)


def make_prompts(family: Family, count: int) -> dict[str, Prompt]:
    """Return the first `count` prompts by request id."""
    return {f"r{index}": make_prompt(family, index) for index in range(count)}
