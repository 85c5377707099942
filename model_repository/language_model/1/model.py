"""Triton adapter of the language model."""

import os
from pathlib import Path
from typing import Any

from stretto.triton_io import stub  # other imports follow later; see triton_io/stub.py


class TritonPythonModel:
    """Generation of a stream of chunks from a prompt; the final flag ends it. A text part returns a receipt.

    in   rows    INT32 [P, S]  token ids of the prompt; absent for a text part
         prompt  UINT8 [n]     authenticated MessagePack: Prompt without its rows and features, or TextPart
         adapters STRING [1]   instead of all others: JSON of an AdapterCommand, whose answer is JSON in `chunk`
         features FP32 [F, M]  log-mel frames; absent without an audio encoder
         patches FP32 [F, M]   patches of images; absent without one
    out  codes   INT32 [K, T]  codes of T new frames; absent in a text-only chunk, in a probe and in a receipt
         chunk   UINT8 [n]     authenticated MessagePack: Envelope
    """

    def initialize(self, args: dict[str, Any]) -> None:
        stub.close_inherited_sockets()
        stub.switch_threads_often()
        stub.use_utf8()
        stub.keep_large_memory()
        from stretto.config import EngineConfig
        from stretto.engine.llm import launch
        from stretto.triton_io.adapter_commands import restore_adapters
        from stretto.triton_io.chunk_sender import SenderLimits
        from stretto.triton_io.flow import FlowTable
        from stretto.triton_io.seal import SealKey
        from stretto.triton_io.speech_service import SpeechService
        from stretto.triton_io.stub import EventLoop, HangWatch
        from stretto.triton_io.tensors import ModelParameters

        parameters = ModelParameters(args)
        config = EngineConfig.from_file(parameters.path("engine"), parameters.path("checkpoint"))
        limits = SenderLimits(
            max_chunks=parameters.number("max_chunks_in_flight"),
            max_frames=parameters.number("max_frames_in_flight"),
            max_ahead_s=parameters.seconds("max_audio_ahead_s"),
        )
        self.model = launch(config)
        self.loop = EventLoop("language model")
        self.key = SealKey(stub.server_pid())
        table = FlowTable.create(stub.server_pid())
        words = os.environ.get(stub.PRONUNCIATIONS)
        dictionary = Path(words) if words else None
        self.service = SpeechService(self.model, self.loop, table, limits, self.key.seal, dictionary)
        self.loop.run(restore_adapters(self.model.adapters))
        self.watches = [
            HangWatch(engine.has_work, [(pid, pid) for pid in engine.engine_pids]) for engine in self.model.parts
        ]
        for engine, watch in zip(self.model.parts, self.watches, strict=True):
            watch.start(f"the engine of {engine.family.name}")
        stub.keep_loaded_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self.service.accept(request)

    def finalize(self) -> None:
        for watch in self.watches:
            watch.stop()
        self.service.close()
        self.key.close()
        self.model.shutdown()
