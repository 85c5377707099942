"""Conversion of a VITA-Audio release with both acoustic parts: audio encoder and decoder."""

import json
from pathlib import Path

import numpy as np
import pytest

from lab.releases.random_glm4_voice import write_glm4_tokenizer, write_glm4_voice
from stretto.config import DecoderConfig
from stretto.convert.command import main
from stretto.decoder.worker import DecoderWorker, open_codec
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.chunk import Chunk
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes
from tests.encoders.recordings import HEARD, speech
from tests.fakes import RecordedReply
from tests.vita_release import command, random_vita


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vita")
    parts = {"codec": write_glm4_voice(folder / "codec"), "ssl-tokenizer": write_glm4_tokenizer(folder / "tokenizer")}
    words = command(random_vita.write_release(folder / "release"), folder / "checkpoint")
    assert main([*words, *(word for name, path in parts.items() for word in (f"--{name}", str(path)))]) == 0
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def test_audio_input_becomes_16_khz_tokens(preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(RawRequest(pcm_in=speech(1.0), sample_rate=16_000, task="asr"))
    first = preprocessor.family.layout.audio[0].start
    heard = [first + token for token in json.loads(HEARD.read_text())["1.0"]]
    rows = prompt.rows[:, 0].tolist()
    at = rows.index(preprocessor.family.markers["begin_of_audio"]) + 1
    assert rows[at : at + len(heard) + 1] == [*heard, preprocessor.family.markers["end_of_audio"]]
    with pytest.raises(InvalidRequest, match=r"pcm_in: expected at least 0.08 s, got 0.0500 s"):
        preprocessor.prepare(RawRequest(pcm_in=speech(0.05), sample_rate=16_000, task="asr"))


def test_reply_chunks_follow_the_decoder_block_sizes(checkpoint: Path, preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(RawRequest(text="How are you?", options='{"chunking": {"first_frames": 2}}'))
    policy = Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows).delivery.chunking
    codec = open_codec(DecoderConfig(codec=preprocessor.family.codec), checkpoint)
    assert policy.blocks == codec.spec.blocks
    codes, pacer, sent, replies = random_codes(codec, 1, 30)[0].numpy(), Pacer(policy), 0, list[RecordedReply]()
    worker = DecoderWorker(codec, DecoderConfig(codec="glm4_voice", stop_timeout_s=60))
    try:
        for ready in range(1, 31):
            size = pacer.num_to_send(ready - sent) or (30 - sent) * (ready == 30)
            if size:
                replies.append(RecordedReply(None, ("u", len(replies))))
                chunk = Chunk(len(replies) - 1, Segment.INTERLEAVED, is_final=ready == 30)
                worker.push("u", chunk, codes[:, sent : sent + size], replies[-1])
                sent += size
        lengths = [len(reply.wait().pcm) for reply in replies]
    finally:
        worker.stop()
    held = codec.spec.right_frames
    assert lengths == [(25 - held) * 1764, (5 + held) * 1764]
    assert all(np.abs(reply.pcm).max() > 0.01 for reply in replies)
