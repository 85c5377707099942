"""What a request asks for is the same in the engine's process as before it."""

from dataclasses import replace

import msgspec
import numpy as np

from stretto.engine.protocol import SpeechParams
from stretto.records.prompt import HeardAudio
from stretto.records.sampling import SamplingConfig, SegmentSampling

SAMPLING = SamplingConfig(SegmentSampling(0.7, 5, 0.9, 1, 20), SegmentSampling(1, max_rows=9), seed=(1 << 63) - 1)


def test_parameters_come_back_as_they_went() -> None:
    codes, heard = np.arange(12, dtype=np.int32).reshape(4, 3), np.ones((5, 2), np.float32)
    for sampling in (SAMPLING, replace(SAMPLING, guidance_scale=2.5, policy="until_s", guided_until_s=0.1)):
        sent = SpeechParams("tts", sampling, codes, True, (HeardAudio(1, 2, heard),), 2, (5, 6))
        extra_args = msgspec.msgpack.decode(msgspec.msgpack.encode(sent.to_extra_args()))
        read = SpeechParams.from_extra_args(extra_args, num_streams=4)
        assert (read.task, read.sampling, read.is_unconditional, read.num_delayed_rows) == ("tts", sampling, True, 2)
        assert read.track == (5, 6)
        np.testing.assert_array_equal(read.codes, codes)
        (audio,) = read.audios
        assert (audio.first_row, audio.num_rows) == (1, 2)
        np.testing.assert_array_equal(audio.features, heard)
