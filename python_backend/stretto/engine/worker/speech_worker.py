"""vLLM worker that applies streamed-text updates before each step."""

from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import CompilationTimes

from stretto.engine.adapters import Adapters
from stretto.engine.protocol import SpeechCachedRequests

if TYPE_CHECKING or not current_platform.is_cpu():
    Base = Worker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as Base


class SpeechWorker(Base):
    """vLLM's worker for the device (GPU or CPU) with LoRA adapters and streamed text."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Warm up as vLLM does, then load all adapters, so that no step has to load one."""
        times = super().compile_or_warm_up_model()
        for adapter in Adapters.from_config(self.vllm_config).values():
            self.add_lora(adapter)
        return times

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | AsyncModelRunnerOutput | None:
        """Write newly arrived text to the slot tables, then compute the step."""
        cached = scheduler_output.scheduled_cached_reqs
        if isinstance(cached, SpeechCachedRequests):
            runner: Any = self.model_runner
            runner.model_state.slots.extend_texts(cached.new_text)
        return super().execute_model(scheduler_output)
