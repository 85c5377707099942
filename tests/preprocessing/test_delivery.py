"""Options for the delivery of a waveform."""

import json
from typing import Any

import pytest

from stretto.errors import InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.preprocessing.options import read_delivery, read_options
from stretto.records.sampling import Delivery, OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto_contract.schema import ChunkingOptions
from tests.speech_families import LATENTS

RING = {"name": "stretto_ring_0011223344556677"}


def read(options: dict[str, Any]) -> Delivery:
    return read_options(json.dumps(options), TINY, TINY.task("tts"), 25.0, 2).delivery


def test_delivery_defaults_come_from_the_family() -> None:
    first, steady = TINY.first_chunk_frames, TINY.steady_chunk_frames
    assert read({}) == Delivery(OutputForm("pcm_f32le", None), ChunkPolicy(first, steady, 0.0, 25.0, 2))


def test_default_chunk_sizes_of_the_server_yield_to_those_of_a_request() -> None:
    def read(options: ChunkingOptions, chunking: ChunkingOptions) -> ChunkPolicy:
        return read_delivery({"chunking": options}, TINY, 25.0, 2, chunking=chunking).chunking

    first, steady = TINY.first_chunk_frames, TINY.steady_chunk_frames
    assert read({}, {"steady_frames": 50, "playout_s": 0.5}) == ChunkPolicy(first, 50, 0.5, 25.0, 2)
    assert read({"playout_s": 0.0}, {"playout_s": 0.5}) == ChunkPolicy(first, steady, 0.0, 25.0, 2)
    assert read({"steady_frames": 3}, {"first_frames": 8}) == ChunkPolicy(3, 3, 0.0, 25.0, 2)
    with pytest.raises(InvalidRequest, match=r"chunking\.first_frames: expected an integer in "):
        read({}, {"first_frames": 0})


def test_every_option_is_read_into_its_field() -> None:
    delivery = read(
        {
            "output": {"encoding": "pcm_s16le", "sample_rate": 24_000, "codes": True},
            "chunking": {"first_frames": 2, "steady_frames": 50, "playout_s": 0.25, "deterministic": True},
        }
    )
    form, policy = OutputForm("pcm_s16le", 24_000, deterministic=True), ChunkPolicy(2, 50, 0.25, 25.0, 2, True)
    assert delivery == Delivery(form, policy, with_codes=True)


def test_record_names_the_first_chunk_of_a_server_with_a_profile() -> None:
    """The first chunks of a server with the profile `throughput` are larger than the family's."""
    chunking: ChunkingOptions = {"first_frames": 4 * TINY.first_chunk_frames}
    delivery = read_delivery({"chunking": {"first_frames": 1}}, TINY, 25.0, 2, chunking=chunking)
    assert delivery.default_first_frames == 4 * TINY.first_chunk_frames


def test_first_chunk_is_no_larger_than_the_steady_size() -> None:
    assert read({"chunking": {"steady_frames": 2}}).chunking == ChunkPolicy(2, 2, 0.0, 25.0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pauses": True}, r"options.pauses: expected no value \(this model predicts no pauses\), got true"),
        ({"progress": True, "live": True}, r"options.progress: expected no value \(only live transcripts"),
        ({"resume_s": 61}, r"options.resume_s: expected seconds in \[0, 60\], got 61"),
        ({"resume_s": 5}, r"options.resume_s: expected no value \(only live sessions can be resumed\), got 5"),
        ({"resume_s": 5, "live": True, "words": "aligned"}, r"options.resume_s: expected no value with words \(word"),
        (
            {"output": {"format": "wav"}},
            r"options.output.format: expected one of codes, encoding, ring, sample_rate, got an",
        ),
        ({"output": {"ring": {}}}, r"options.output.ring.name: expected a name like stretto_ring_.*, got none"),
        ({"output": {"ring": {"name": "stretto_ring_0011223344556677\n"}}}, r"ring.name: expected a name like"),
        (
            {"output": {"ring": RING | {"key": 1}}},
            r"ring.key: expected one of memory, name",
        ),
        ({"chunking": {"first_frames": 0}}, r"options.chunking.first_frames: expected an integer in \[1, 25\], got 0"),
        (
            {"chunking": {"first_frames": 3, "steady_frames": 2}},
            r"first_frames: expected an integer in \[1, 2\], got 3",
        ),
        ({"chunking": {"steady_frames": 251}}, r"options.chunking.steady_frames: expected an integer in \[1, 250\]"),
    ],
)
def test_inconsistent_delivery_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read(options)


def test_latent_frames_refuse_the_codes_option() -> None:
    with pytest.raises(InvalidRequest, match=r"options\.output\.codes: expected false \(frames of this model have no"):
        read_delivery({"output": {"codes": True}}, LATENTS, 12.5, 0)
    assert not read_delivery({"output": {"codes": False}}, LATENTS, 12.5, 0).with_codes
