"""Device state of all requests (vLLM's `ModelState` hook), and the worker that writes streamed text to it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from vllm.config import CompilationMode, VllmConfig
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import CompilationTimes

from stretto.cpu_backend.depth import CpuDepth, CpuSteppedDepth
from stretto.cpu_backend.products import pad_products, use_cpu_layers
from stretto.engine.adapters import check_adapter, lora_requests
from stretto.engine.kernels.gpu.advance import gather_rows
from stretto.engine.kernels.gpu.depth import DeviceDepth, DeviceSteppedDepth
from stretto.engine.protocol import family_of
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.step_records import SpeechCachedRequests, SpeechRequestData
from stretto.engine.worker.bursts import BurstSampler
from stretto.engine.worker.input_embeddings import InputEmbeddings
from stretto.engine.worker.latent_draw import LatentDraw, LatentStepProgram
from stretto.engine.worker.latent_rows import LatentRows
from stretto.engine.worker.predictors import (
    AudioHeads,
    ConditionNetwork,
    DepthFirstHead,
    DepthFrames,
    FirstHead,
    GeneratedRows,
    ParallelHeads,
    Readout,
    RequestMemory,
    RowPredictor,
    StreamHeads,
)
from stretto.engine.worker.run_slots import NO_SLOT, RunSlots, warmup_request
from stretto.engine.worker.sampler import RowDraw, SpeechSampler
from stretto.engine.worker.segment_state import SegmentState
from stretto.engine.worker.slots import SlotTables, arrays_on
from stretto.engine.worker.step_graphs import StepGraphs, recorder_of
from stretto.engine.worker.step_program import StepProgram, StepSampler
from stretto.engine.worker.window_blocks import clear_freed_blocks
from stretto.family.audio_format import AudioFormat
from stretto.family.base import Family


def captured_steps(family: Family, config: VllmConfig) -> list[int]:
    """Return the solver step counts for which to capture graphs: the tasks' defaults and the option `latent_steps`."""
    options = config.additional_config
    configured = options.get("latent_steps", ()) if isinstance(options, dict) else ()
    defaults = {task.sampling.latents.steps for task in family.tasks if task.sampling.latents is not None}
    return sorted(defaults | set(configured))


class SpeechModelState(DefaultModelState):
    """State of the run slots on the device, and the model's inputs on all streams."""

    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device
    ):
        super().__init__(vllm_config, model, encoder_cache, device)
        self.rules = SegmentRules(family_of(self.model_config.hf_config), self.max_model_len)
        self.arrays = arrays_on(device)
        if device.type == "cpu":
            pad_products(model, vllm_config.compilation_config.mode != CompilationMode.NONE)
            use_cpu_layers(model, vllm_config)
        tables = SlotTables(self.max_num_reqs, self.rules, device)
        self.slots = RunSlots(tables, self.rules, self.arrays)
        num_streams = self.rules.family.layout.num_input_streams
        # Addresses stay the same from step to step, as CUDA graphs require. A full graph reads the ids. A piecewise
        # graph reads the embedded rows, which the model computes before its first piece (64 MB for 8192 rows of 4096
        # bf16).
        self._batch_rows = torch.zeros(self.max_num_tokens, num_streams, dtype=torch.int32, device=device)
        assert isinstance(self.dtype, torch.dtype)
        self._batch_embeds = torch.zeros(self.max_num_tokens, self.inputs_embeds_size, dtype=self.dtype, device=device)
        self._step_sampler: StepSampler | None = None
        self._row_predictor: RowPredictor | None = None
        self.memory: RequestMemory | None = None
        built: Any = model
        has_audio = AudioFormat.from_config(self.model_config.hf_config.to_dict()) is not None
        self.input_embeddings = None
        if has_audio or built.image_encoder is not None:
            self.input_embeddings = InputEmbeddings(model, self.arrays, self._batch_embeds)
        latents = self.rules.family.layout.latents
        self._latent_rows = None if latents is None else LatentRows(self.rules.family.layout, self.arrays)
        speaker = self.rules.family.mechanism.speaker
        self.prompt_states: Any = None if speaker is None else speaker.send_states(model)
        self._drawing: SpeechSampler | StepSampler | None = None
        self.first_frames = self._open_first_frames()
        self._conditions: ConditionNetwork | None = None
        if self.rules.family.mechanism.conditions is not None:
            conditioned: Any = model
            self._conditions = network = conditioned.conditions
            network.prepare(conditioned.model.layers, self.max_num_reqs, len(self._batch_embeds), self.dtype)

    def _open_first_frames(self) -> Any:
        options = self.vllm_config.additional_config
        if not isinstance(options, dict) or "first_chunk" not in options:
            return None
        from stretto.engine.worker.first_frames import FirstFrames  # with codecs, which other engines do not import

        def drawn() -> torch.Tensor:
            assert self._drawing is not None, "a step has sampled"
            return self._drawing.drawn

        return FirstFrames.open(self.vllm_config, self.slots, self.device, drawn)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Assign a new request, or a preempted one that resumes, to the slot `req_index`."""
        super().add_request(req_index, new_req_data)
        if not isinstance(new_req_data, SpeechRequestData):
            new_req_data = SpeechRequestData.extending(new_req_data, *warmup_request(new_req_data, self.rules))
        self.slots.fill(req_index, new_req_data)
        if self._row_predictor is not None:
            self._row_predictor.fill_slot(req_index, new_req_data.num_computed_tokens)
        if self.memory is not None:
            self.memory.fill_slot(req_index, new_req_data)
        if self._latent_rows is not None:
            self._latent_rows.fill_slot(req_index, new_req_data)
        if self.input_embeddings is not None:
            assert new_req_data.prompt is not None
            self.input_embeddings.fill_slot(req_index, new_req_data.prompt)
        if self.prompt_states is not None:
            self.prompt_states.begin(new_req_data)
        if self.first_frames is not None:
            self.first_frames.begin(new_req_data)
        if self._conditions is not None:
            assert new_req_data.prompt is not None
            self._conditions.fill_slot(req_index, new_req_data.prompt.condition, self.arrays)

    def remove_request(self, req_id: str) -> None:
        """Clear the slot of a request that has ended or was preempted."""
        super().remove_request(req_id)
        slot = self.slots.empty(req_id)
        if self.memory is not None and slot != NO_SLOT:
            self.memory.put_aside(req_id, slot)
        if self.input_embeddings is not None and slot != NO_SLOT:
            self.input_embeddings.forget(slot)

    def apply_staged_writes(self) -> None:
        """Upload the state of the slots filled since the last step."""
        super().apply_staged_writes()
        self.slots.tables.apply_staged(self.arrays)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Return the model's inputs: the ids of all streams, gathered by slot and position."""
        inputs = super().prepare_inputs(input_batch, req_states)
        wrap = self.arrays.wrap
        num_rows = input_batch.num_tokens
        slots = wrap(input_batch.idx_mapping)
        if num_rows != input_batch.num_reqs:
            slots = self.arrays.upload(np.repeat(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens))
        rows = self._batch_rows[: input_batch.num_tokens_after_padding]
        ids = wrap(input_batch.input_ids)[:num_rows]
        positions = wrap(input_batch.positions)[:num_rows]
        if self.rules.max_rows_per_step > 1:  # vLLM keeps only the last row of a step in `input_ids`
            ids = wrap(req_states.all_token_ids.gpu)[slots, positions]
        tables = self.slots.tables
        texts = None if self.rules.text_rows is None else tables.texts
        gather_rows(rows, ids, slots, positions, tables.codes, self.rules.family.layout.pad_id, texts)
        if self._conditions is not None:
            self._conditions.fill(self.arrays.tensor(slots), rows)
        encoded_inputs = {} if self.input_embeddings is None else self.input_embeddings.fill(input_batch)
        inputs = {**inputs, "rows": rows, "inputs_embeds": self._batch_embeds[: len(rows)], **encoded_inputs}
        if self._latent_rows is not None and num_rows != input_batch.num_reqs:
            inputs["latent_rows"] = self.arrays.tensor(self._latent_rows.rows(input_batch))
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Return inputs of the same shapes as `prepare_inputs` does, for profiling and graph capture."""
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        embeds = self._batch_embeds[:num_tokens]
        encoded_inputs = {} if self.input_embeddings is None else self.input_embeddings.inputs(num_tokens)
        return {**inputs, "rows": self._batch_rows[:num_tokens], "inputs_embeds": embeds, **encoded_inputs}

    def custom_sampler(self, sampler: Sampler) -> tuple[Any, None]:
        """Return our sampler, which replaces `sampler`, and no speculative decoder (vLLM's hook)."""
        drawing = self._drawing = self._row_sampler(sampler)
        pauses = self.rules.family.mechanism.pauses
        return drawing if pauses is None else pauses.sampler(drawing, self.model), None

    def _row_sampler(self, sampler: Sampler) -> SpeechSampler | StepSampler:
        options = self.vllm_config.additional_config
        drawing = self.rules.family.drawing
        in_torch = isinstance(options, dict) and not options.get("step_kernels", True)
        in_torch = in_torch or (drawing.row_draw is not None and drawing.step_program is None)
        if self.arrays.xp is np or in_torch:
            return self._array_sampler(sampler)
        self._step_sampler = self._kernel_sampler(sampler)
        return self._step_sampler

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Pass the allocated KV cache to the predictor of further rows, if there is one (vLLM's hook)."""
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if self._row_predictor is not None:
            self._row_predictor.bind(kv_cache_config, block_tables)

    def preprocess_state(
        self,
        input_batch: InputBatch,
        block_tables: tuple[torch.Tensor, ...],
        kv_cache_config: KVCacheConfig,
        num_computed_tokens: torch.Tensor,
    ) -> None:
        """Remove freed blocks from the block tables of a step (vLLM's hook)."""
        super().preprocess_state(input_batch, block_tables, kv_cache_config, num_computed_tokens)
        clear_freed_blocks(block_tables, input_batch.idx_mapping, kv_cache_config, num_computed_tokens)

    def capture_inner_cudagraphs(self, *buffers: object, **options: object) -> None:
        """Capture our own CUDA graphs (vLLM's hook, called twice; the first call measures memory use)."""
        if self._step_sampler is not None:
            self._step_sampler.capture()
        if self._row_predictor is not None:
            self._row_predictor.capture()
        if self.first_frames is not None:
            self.first_frames.capture()

    def _readout(self) -> Readout:
        family = self.rules.family
        if family.depth is not None:
            depth: Any = self.model.get_submodule("depth")
            kinds = (CpuDepth, CpuSteppedDepth) if self.device.type == "cpu" else (DeviceDepth, DeviceSteppedDepth)
            steps: Any = depth if family.depth.network else kinds[bool(family.depth.schedule)](depth)
            frames = DepthFrames(steps, family.layout, self.max_num_reqs, family.second_ids)
            rows = depth.first_head.data
            begins = family.depth.num_first > 0
            first = DepthFirstHead(rows, self.rules, steps.start) if begins else FirstHead(rows, self.rules)
            return Readout(first, frames, self.model)
        if family.audio_head:
            head_bias = self.model.get_parameter("audio_head.bias").data if family.audio_head == "biased" else None
            audio_heads = AudioHeads(self.model.get_parameter("audio_head.weight").data, self.rules, head_bias)
            return Readout(audio_heads, ParallelHeads(audio_heads), self.model)
        bias = self.model.get_parameter("stream_bias.weight").data if family.has_stream_bias else None
        heads = StreamHeads(self.model.get_submodule("lm_head"), self.rules, bias)
        return Readout(heads, ParallelHeads(heads), self.model)

    def _step_program(self, tokens: torch.Tensor) -> StepProgram:
        program_class = self.rules.family.drawing.step_program
        if self.rules.family.layout.latents is None:
            hidden = self._batch_embeds.new_zeros(self.max_num_reqs, self.model_config.get_hidden_size())
            default_class: Callable[..., StepProgram] = StepProgram if program_class is None else program_class
            return default_class(self._readout(), self.rules, self.slots.tables, tokens, hidden)
        model: Any = self.model
        steps = captured_steps(self.rules.family, self.vllm_config)
        arguments = model.latent_readout(self.rules), self.rules, self.slots.tables, tokens, self.max_num_reqs, steps
        program: StepProgram = LatentStepProgram(*arguments) if program_class is None else program_class(*arguments)
        self.memory = program.memory
        return program

    def _kernel_sampler(self, sampler: Sampler) -> StepSampler:
        tokens = sampler.req_states.all_token_ids.gpu
        program = self._step_program(tokens)
        recorder = recorder_of(self.device, self.vllm_config)
        graphs = StepGraphs(
            program.launch, self.max_num_reqs, recorder, lambda variant, _: program.can_capture(variant)
        )
        return StepSampler(sampler, self.slots, program, graphs, self._bursts(tokens))

    def _array_sampler(self, sampler: Sampler) -> SpeechSampler:
        segments = SegmentState(self.rules, self.arrays)
        tables = self.slots.tables
        tokens = sampler.req_states.all_token_ids.gpu
        model: Any = self.model
        has_latents = self.rules.family.layout.latents is not None
        draw_class = self.rules.family.drawing.row_draw
        readout = model.latent_readout(self.rules) if has_latents else self._readout()
        default_class: Any = LatentDraw if has_latents else RowDraw
        draw: RowDraw = (draw_class or default_class)(readout, segments, tables, self.arrays, tokens)
        self.memory = draw.memory
        return SpeechSampler(sampler, self.slots, draw, segments, self._bursts(tokens))

    def _bursts(self, tokens: torch.Tensor) -> BurstSampler | None:
        steps = self.rules.family.mechanism.steps
        if steps is None:
            return None
        generated = GeneratedRows(
            self.model, tokens, self.slots.tables.codes, self.arrays, self.rules.family.layout.pad_id
        )
        predictor: RowPredictor = steps.predictor(self.model, generated, self.vllm_config)
        self._row_predictor = predictor
        return BurstSampler(self.slots, predictor)


if TYPE_CHECKING or not current_platform.is_cpu():
    Base = Worker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as Base


class SpeechWorker(Base):
    """vLLM's worker for the device (GPU or CPU), extended to load LoRA adapters and apply streamed text."""

    def load_model(self, **options: Any) -> None:
        """Load the model. Prompt states or first frames replace vLLM's worker for log probabilities of prompts."""
        super().load_model(**options)
        runner: Any = self.model_runner
        state = runner.model_state
        prompt_worker = state.prompt_states if state.first_frames is None else state.first_frames
        if prompt_worker is not None:
            runner.prompt_logprobs_worker = prompt_worker

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Warm up as vLLM does, then load all adapters, so that no step has to load one."""
        times = super().compile_or_warm_up_model()
        for adapter in lora_requests(self.vllm_config):
            self.add_lora(adapter)
        return times

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter, or raise CheckpointError if it is not one for this model."""
        check_adapter(lora_request.lora_name, Path(lora_request.lora_path), self.vllm_config)
        return super().add_lora(lora_request)

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | AsyncModelRunnerOutput | None:
        """Write newly arrived text and the positions of first audio rows to the slots, then compute the step."""
        cached = scheduler_output.scheduled_cached_reqs
        if isinstance(cached, SpeechCachedRequests):
            runner: Any = self.model_runner
            runner.model_state.slots.extend_texts(cached.new_text)
            runner.model_state.slots.note_audio(cached.audio_starts)
        return super().execute_model(scheduler_output)
