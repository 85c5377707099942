"""Triton's adapter of the language model."""

from typing import Any

from stretto.triton_io import stub  # all else is imported later: see there


class TritonPythonModel:
    """A prompt to a stream of chunks, ended by the final flag; a part of a text that is being spoken to its receipt.

    in   rows    INT32 [P, S]  token ids of the prompt; absent of a part
         prompt  UINT8 [n]     sealed JSON: Prompt without its rows and features, or TextPart
         features FP32 [F, M]  log-mel frames; absent where the family hears otherwise
    out  codes   INT32 [K, T]  codes of T new frames; absent in a text-only chunk, in a probe and in a receipt
         chunk   UINT8 [n]     sealed JSON: Envelope
    """

    def initialize(self, args: dict[str, Any]) -> None:
        stub.use_utf8()
        stub.keep_large_memory()
        stub.fork_engine()
        import multiprocessing

        from stretto.config import EngineConfig
        from stretto.engine.environment import prepare_environment
        from stretto.triton_io.chunk_sender import SenderLimits
        from stretto.triton_io.event_loop import EventLoop
        from stretto.triton_io.flow import FlowTable
        from stretto.triton_io.hang import HangWatch
        from stretto.triton_io.parameters import ModelParameters
        from stretto.triton_io.seal import SealKey
        from stretto.triton_io.speech_service import SpeechService

        prepare_environment()
        with stub.no_collection():
            from stretto.engine.frontend.llm import SpeechLLM  # vllm reads the environment as it is imported

        parameters = ModelParameters(args)
        config = EngineConfig.from_file(parameters.path("engine"), parameters.path("checkpoint"))
        limits = SenderLimits(
            max_chunks=parameters.number("max_chunks_in_flight"),
            max_frames=parameters.number("max_frames_in_flight"),
            max_ahead_s=parameters.seconds("max_audio_ahead_s"),
        )
        self.model = SpeechLLM.launch(config)
        engines = [(process.pid, process.pid) for process in multiprocessing.active_children()]
        self.loop = EventLoop("language model")  # only now: the engine's process was forked from this one
        self.key = SealKey(stub.server_pid())
        table = FlowTable.create(stub.server_pid())
        self.service = SpeechService(self.model, self.loop, table, limits, self.key.seal)
        self.watch = HangWatch(self.model.has_work, engines)
        self.watch.start("the engine")

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self.service.accept(request)

    def finalize(self) -> None:
        self.watch.stop()
        self.service.close()
        self.key.close()
        self.model.shutdown()
        del self.service, self.model  # now, because vLLM's own destructor fails when the interpreter is going away
