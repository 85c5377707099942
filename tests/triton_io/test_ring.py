"""The two ends of a ring: what the server puts in, the client takes out, and nobody overtakes the other."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stretto.errors import InvalidRequest
from stretto.records.ring_address import RingAddress
from stretto.triton_io.ring import PcmRing
from stretto_client.regions import SystemRegion
from stretto_client.ring import HEADER, Ring, RingSize

from tests.cuda_runtime import install

SIZE = RingSize(slots=4, slot_bytes=64)  # 16 samples of float32 to a slot


@pytest.fixture(params=["system", "cuda"])
def client_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ring]:
    runtime = install(monkeypatch)
    ring = Ring(request.param, SIZE)
    yield ring
    ring.close()
    assert not runtime.buffers
    assert not runtime.opened


@pytest.fixture
def server_end(client_end: Ring) -> Iterator[PcmRing]:
    ring = PcmRing.open(RingAddress.from_record(client_end.option()))
    yield ring
    ring.close()


def test_samples_come_out_as_they_went_in_round_and_round(client_end: Ring, server_end: PcmRing) -> None:
    random = np.random.default_rng(0)
    for size in (1, 16, 17, 64, 40, 0, 33, 64, 5):
        samples = random.standard_normal(size).astype(np.float32)
        record = server_end.put(samples)
        assert record is not None
        assert record["slots"] == -(-size // 16)
        np.testing.assert_array_equal(client_end.take(record), samples)


def test_sixteen_bit_samples_fit_twice_as_densely(client_end: Ring, server_end: PcmRing) -> None:
    samples = np.arange(-50, 50, dtype=np.int16)
    record = server_end.put(samples)
    assert record == {"slot": 0, "slots": 4, "samples": 100, "dtype": "int16"}
    np.testing.assert_array_equal(client_end.take(record), samples)


def test_a_full_ring_takes_nothing_until_a_slot_is_released(client_end: Ring, server_end: PcmRing) -> None:
    chunks = [np.full(16, index, np.float32) for index in range(6)]
    records = [server_end.put(chunk) for chunk in chunks[:4]]
    assert server_end.put(chunks[4]) is None
    np.testing.assert_array_equal(client_end.take(records[0]), chunks[0])
    records.append(server_end.put(chunks[4]))
    assert server_end.put(chunks[5]) is None
    for record, chunk in zip(records[1:], chunks[1:5], strict=True):
        np.testing.assert_array_equal(client_end.take(record), chunk)


def test_the_server_knows_what_never_fits(server_end: PcmRing) -> None:
    assert server_end.holds(np.zeros(64, np.float32))
    assert not server_end.holds(np.zeros(65, np.float32))


def test_a_client_that_is_out_of_step_notices(client_end: Ring, server_end: PcmRing) -> None:
    server_end.put(np.zeros(16, np.float32))
    record = server_end.put(np.zeros(16, np.float32))
    with pytest.raises(ValueError, match="slot 1, but 0 is next"):
        client_end.take(record)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ("stretto_ring_0011223344556677", "ring"),
        ({"name": "../etc/passwd"}, "ring.name"),
        ({"name": "stretto_flow_0011223344556677"}, "ring.name"),
        ({"name": "stretto_ring_0011223344556677", "key": 1}, "ring"),
        ({"name": "stretto_ring_0011223344556677", "cuda_handle": "abc"}, "ring.cuda_handle"),
        ({"name": "stretto_ring_0011223344556677", "cuda_handle": base64.b64encode(b"x").decode()}, "ring.cuda_handle"),
        ({"name": "stretto_ring_0011223344556677", "device": True}, "ring.device"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused_by_name(record: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"options.output.{field}: "):
        RingAddress.from_record(record)


def test_what_is_no_ring_is_refused(tmp_path: Path) -> None:
    address = RingAddress("stretto_ring_0011223344556677")
    with pytest.raises(InvalidRequest, match="shared memory of this host"):
        PcmRing.open(address, tmp_path)
    path = tmp_path / address.name
    for content in (b"", bytes(HEADER), Path(__file__).read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=r"ring\.name"):
            PcmRing.open(address, tmp_path)
    other = tmp_path / "elsewhere"
    other.write_bytes(bytes(HEADER))
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(InvalidRequest, match="shared memory of this host"):
        PcmRing.open(address, tmp_path)


def test_a_server_without_cuda_says_so() -> None:
    ring = Ring("system", SIZE)
    record = ring.option() | {"cuda_handle": base64.b64encode(bytes(64)).decode()}
    with pytest.raises(InvalidRequest, match="this server has no CUDA"):
        PcmRing.open(RingAddress.from_record(record))
    ring.close()


def test_a_handle_that_cuda_rejects_is_the_client_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    ring = Ring("cuda", SIZE)
    for wrong in ({"cuda_handle": base64.b64encode(bytes(64)).decode()}, {"device": 7}):
        with pytest.raises(InvalidRequest, match=r"memory of GPU . that another process shares"):
            PcmRing.open(RingAddress.from_record(ring.option() | wrong))
    ring.close()


def test_memory_cut_short_by_its_client_is_an_error_of_that_client(server_end: PcmRing, client_end: Ring) -> None:
    path = Path("/dev/shm") / client_end.option()["name"]
    server_end.put(np.ones(16, np.float32))
    with path.open("r+b") as file:
        file.truncate(0)
    with pytest.raises(InvalidRequest, match="at least 4096 bytes"):
        server_end.put(np.ones(16, np.float32))
    with path.open("r+b") as file:  # so that the client's own mapping is whole again
        file.truncate(HEADER + 256)


def test_a_region_of_the_system_is_gone_after_close() -> None:
    region = SystemRegion("stretto_test", 128)
    path = Path("/dev/shm") / region.name
    region.write(np.arange(4, dtype=np.int64))
    assert region.read(8, 8).view(np.int64)[0] == 1
    assert path.exists()
    region.close()
    assert not path.exists()
