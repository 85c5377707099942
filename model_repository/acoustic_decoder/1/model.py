"""Triton adapter of the acoustic decoder."""

import os
from typing import Any

from stretto.triton_io import stub  # other imports follow later; see triton_io/stub.py


class TritonPythonModel:
    """Conversion of an utterance's chunks to audio. Each chunk gets a single response, which has the final flag.

    in   codes  INT32 [K, T]  codes of T new frames without the delay pattern; absent in a text-only chunk
         chunk  UINT8 [n]     authenticated MessagePack: Envelope
    out  pcm    FP32 [n]      mono in [-1, 1]; absent if there are no samples
         pcm16  INT16 [n]     instead of pcm, if the client requested 16-bit samples
         event  STRING [1]    JSON: content of this response
    """

    def initialize(self, args: dict[str, Any]) -> None:
        stub.close_inherited_sockets()
        stub.switch_threads_often()
        stub.use_utf8()
        stub.keep_large_memory()
        stub.let_others_first()  # a batch takes longer than a step of the language model, which would wait for it
        from stretto.config import DecoderConfig
        from stretto.decoder.worker import DecoderWorker, open_aligner, open_codec
        from stretto.family.plugin import family_at
        from stretto.triton_io.decoding_service import DecodingService
        from stretto.triton_io.flow import Outcome, conclude_all
        from stretto.triton_io.seal import SealKey
        from stretto.triton_io.stub import HangWatch
        from stretto.triton_io.tensors import ModelParameters

        parameters = ModelParameters(args)
        stub.limit_gpu_share(parameters.number("mps_share", 100))
        checkpoint = parameters.speaking_checkpoint()
        family = family_at(checkpoint)
        of_family = {
            "codec": family.codec,
            "device": parameters.device,
            "first_frames": str(family.first_chunk_frames),
            "steady_frames": str(family.steady_chunk_frames),
        }
        if family.num_codebooks:
            of_family["num_codebooks"] = str(family.num_codebooks)
        configured = {name: text for name, text in parameters.strings.items() if text}  # empty: the default
        configured |= {"marker": os.environ[stub.MARKER]} if stub.MARKER in os.environ else {}
        config = DecoderConfig.from_parameters(of_family | configured)
        aligner = open_aligner(config, parameters.path("aligner")) if config.aligner else None
        self.worker = DecoderWorker(open_codec(config, checkpoint), config, aligner=aligner)
        self.worker.wait_until_warm()
        self.key = SealKey(stub.server_pid())
        # Utterances abandoned by an earlier decoder process.
        conclude_all(stub.server_pid(), Outcome.CLOSING, "the decoder has ended and was restarted; try again")
        self.service = DecodingService(self.worker, self.key.seal, config.device)
        self.watch = HangWatch(self.worker.has_work, [(os.getpid(), self.worker.thread_id)], [stub.server_pid()])
        self.watch.start("the decoder")
        stub.keep_loaded_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self.service.accept(request)

    def finalize(self) -> None:
        self.watch.stop()
        self.worker.stop()
        self.key.close()
