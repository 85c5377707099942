"""Both ends of a ring: the client reads the server's samples, and neither overtakes the other."""

import base64
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stretto.errors import Cancelled, InvalidRequest
from stretto.records.sampling import RingAddress
from stretto.triton_io.cuda_memory import CudaMemory
from stretto.triton_io.ring import CudaPayload, PcmRing, check_ring, is_locked
from stretto_client.shared_memory import HEADER, Ring, RingSize, SystemRegion
from tests.cuda_runtime import FakeDriver, Handle, OldHandle, install

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
    ring = PcmRing.open(RingAddress(**client_end.option()))
    yield ring
    ring.close()


def test_ring_samples_round_trip(client_end: Ring, server_end: PcmRing) -> None:
    random = np.random.default_rng(0)
    for size in (1, 16, 17, 64, 40, 0, 33, 64, 5):
        samples = random.standard_normal(size).astype(np.float32)
        record = server_end.put(samples)
        assert record is not None
        assert record["slots"] == -(-size // 16)
        np.testing.assert_array_equal(client_end.read_samples(record), samples)


@pytest.mark.parametrize("handle", [Handle, OldHandle])
def test_cuda_ipc_handles_work_with_all_cuda_bindings_versions(
    handle: type[Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = install(monkeypatch, handle)
    client_end = Ring("cuda", SIZE)
    option = client_end.option()
    [address] = runtime.buffers
    assert base64.b64decode(option["cuda_handle"]) == address.to_bytes(64, "little")
    server_end = PcmRing.open(RingAddress(**option))
    assert runtime.opened == [address]
    server_end.close()
    client_end.close()


def test_ring_holds_twice_as_many_16_bit_samples(client_end: Ring, server_end: PcmRing) -> None:
    samples = np.arange(-50, 50, dtype=np.int16)
    record = server_end.put(samples)
    assert record == {"slot": 0, "slots": 4, "samples": 100, "dtype": "int16"}
    np.testing.assert_array_equal(client_end.read_samples(record), samples)


def test_device_samples_are_written_directly_to_a_gpu_ring(client_end: Ring, server_end: PcmRing) -> None:
    """It takes as many slots as needed, several times around the ring."""
    on_host = np.zeros(40, np.float32)
    on_device = np.arange(40, dtype=np.float32)
    for _ in range(3):
        record = server_end.put(on_host, on_device.ctypes.data)
        assert record is not None
        expected = on_device if "cuda_handle" in client_end.option() else on_host
        np.testing.assert_array_equal(client_end.read_samples(record), expected)


def test_samples_wrap_around_the_ring(client_end: Ring, server_end: PcmRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, the writer waits for each copy."""
    sizes: list[int] = []
    write = server_end._payload.write

    def noted(offset: int, data: np.ndarray, address: int | None) -> None:
        sizes.append(len(data))
        write(offset, data, address)

    monkeypatch.setattr(server_end._payload, "write", noted)
    for size in (48, 40):
        samples = np.arange(size, dtype=np.float32)
        record = server_end.put(samples)
        assert record is not None
        np.testing.assert_array_equal(client_end.read_samples(record), samples)
    assert sizes == [192, 64, 96]


def test_full_ring_rejects_chunks_until_a_slot_is_released(client_end: Ring, server_end: PcmRing) -> None:
    chunks = [np.full(16, index, np.float32) for index in range(6)]
    records = [server_end.put(chunk) for chunk in chunks[:4]]
    assert server_end.put(chunks[4]) is None
    np.testing.assert_array_equal(client_end.read_samples(records[0]), chunks[0])
    records.append(server_end.put(chunks[4]))
    assert server_end.put(chunks[5]) is None
    for record, chunk in zip(records[1:], chunks[1:5], strict=True):
        np.testing.assert_array_equal(client_end.read_samples(record), chunk)


def test_ring_reports_samples_that_never_fit(server_end: PcmRing) -> None:
    assert server_end.holds(np.zeros(64, np.float32))
    assert not server_end.holds(np.zeros(65, np.float32))


def test_ring_reader_detects_a_skipped_slot(client_end: Ring, server_end: PcmRing) -> None:
    server_end.put(np.zeros(16, np.float32))
    record = server_end.put(np.zeros(16, np.float32))
    with pytest.raises(ValueError, match="slot 1, but 0 is next"):
        client_end.read_samples(record)


def test_samples_exceeding_shared_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    client_end = Ring("system", SIZE)
    server_end = PcmRing.open(RingAddress(**client_end.option()))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, bytes(data)[:12], offset))
    with pytest.raises(InvalidRequest, match=r"expected enough shared memory for its slots, got 12 of 64 bytes"):
        server_end.put(np.ones(16, np.float32))
    monkeypatch.undo()
    server_end.close()
    client_end.close()


def test_memory_unknown_to_the_cuda_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = install(monkeypatch)
    client_end = Ring("cuda", SIZE)
    handle = base64.b64decode(client_end.option()["cuda_handle"])
    memory = CudaMemory(runtime, FakeDriver(runtime), handle, 0)
    runtime.buffers, known = {}, runtime.buffers
    with pytest.raises(RuntimeError, match="cuMemGetAddressRange: 500"):
        memory.size()
    runtime.buffers = known
    memory.close()
    client_end.close()


def test_files_that_are_not_rings_are_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("content", [b"STRING1\0" + b"secret!!" * 600, b"secret!!" * 600])
def test_contents_of_a_non_ring_file_are_not_revealed(tmp_path: Path, content: bytes) -> None:
    address = RingAddress("stretto_ring_0011223344556677")
    (tmp_path / address.name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"got memory with an invalid header$"):
        PcmRing.open(address, tmp_path)
    assert (tmp_path / address.name).read_bytes() == content


def test_pipes_and_hard_links_are_refused_as_rings(tmp_path: Path, client_end: Ring) -> None:
    address = RingAddress(**client_end.option())
    elsewhere = Path("/dev/shm") / address.name
    os.mkfifo(tmp_path / address.name)
    with pytest.raises(InvalidRequest, match="shared memory of this host"):
        PcmRing.open(address, tmp_path)
    second = elsewhere.with_name("stretto_ring_8899aabbccddeeff")
    os.link(elsewhere, second)
    try:
        with pytest.raises(InvalidRequest, match="shared memory of this host"):
            PcmRing.open(address)
    finally:
        second.unlink()


def test_ring_error_does_not_reveal_server_paths(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PcmRing.open(RingAddress("stretto_ring_0011223344556677"), tmp_path)
    assert str(tmp_path) not in str(refused.value)
    assert str(refused.value).endswith("got stretto_ring_0011223344556677: No such file or directory")


@pytest.mark.parametrize("header", [(1 << 62, 1 << 62, 1 << 62), (0, 0, 0), (-1, -1, -(1 << 63)), (1, 1 << 40, -1)])
def test_corrupted_ring_header_does_not_misplace_writes(
    client_end: Ring, server_end: PcmRing, header: tuple[int, int, int]
) -> None:
    path = Path("/dev/shm") / client_end.option()["name"]
    size = path.stat().st_size
    for _ in range(3):
        server_end.put(np.ones(48, np.float32))
        with path.open("r+b") as file:
            file.seek(8)
            file.write(struct.pack("<3q", *header))
    assert path.stat().st_size == size


def test_server_without_cuda_refuses_a_gpu_ring() -> None:
    ring = Ring("system", SIZE)
    record = ring.option() | {"cuda_handle": base64.b64encode(bytes(64)).decode()}
    with pytest.raises(InvalidRequest, match="this server has no CUDA"):
        PcmRing.open(RingAddress(**record))
    ring.close()


def test_invalid_cuda_handle_is_a_client_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    ring = Ring("cuda", SIZE)
    for wrong in ({"cuda_handle": base64.b64encode(bytes(64)).decode()}, {"device": 7}):
        with pytest.raises(InvalidRequest, match=r"another process's memory on GPU"):
            PcmRing.open(RingAddress(**ring.option() | wrong))
    ring.close()


def test_a_ring_larger_than_its_memory_is_refused_and_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write after the end of the memory would crash the decoder and end all its streams."""
    runtime = install(monkeypatch)
    ring = Ring("cuda", SIZE)
    [buffer] = runtime.buffers.values()
    address = RingAddress(**ring.option())
    path = Path("/dev/shm") / address.name
    for slots, is_refused in ((len(buffer) // 64, False), (len(buffer) // 64 + 1, True)):
        with path.open("r+b") as file:
            file.seek(8)
            file.write(struct.pack("<2q", slots, 64))
        if is_refused:
            with pytest.raises(InvalidRequest, match=f"{slots * 64} bytes of memory on GPU ., got {len(buffer)}"):
                PcmRing.open(address)
        else:
            PcmRing.open(address).close()
        assert not runtime.opened
    assert ring.is_free
    ring.close()


def test_gpu_ring_is_validated_without_opening_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preprocessor does not need a GPU, and opening the handle would create a context there."""
    runtime = install(monkeypatch)
    ring = Ring("cuda", SIZE)
    check_ring(RingAddress(**ring.option()))
    assert (runtime.device, runtime.opened) == (0, [])  # as the client has set it
    check_ring(None)
    ring.close()
    with pytest.raises(InvalidRequest, match=r"ring\.name"):
        check_ring(RingAddress("stretto_ring_0011223344556677"))


def test_gpu_ring_is_not_free_while_the_server_has_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    ring = Ring("cuda", SIZE)
    address = RingAddress(**ring.option())
    assert ring.is_free
    opened = PcmRing.open(address)
    assert not ring.is_free
    opened.close()
    assert ring.is_free
    ring.withdraw()
    with pytest.raises(InvalidRequest, match=r"ring\.name"):
        PcmRing.open(address)
    ring.close()


def test_ring_withdrawn_during_opening_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client frees its memory as soon as the header shows that the server does not use it."""
    runtime = install(monkeypatch)
    ring = Ring("cuda", SIZE)
    say = CudaPayload._mark_open

    def said_too_late(payload: CudaPayload, is_open: bool) -> None:
        ring.withdraw()
        say(payload, is_open)

    monkeypatch.setattr(CudaPayload, "_mark_open", said_too_late)
    with pytest.raises(InvalidRequest, match=r"ring\.name"):
        PcmRing.open(RingAddress(**ring.option()))
    assert ring.is_free
    assert not runtime.opened
    ring.close()


def test_lock_of_a_process_ends_with_it(tmp_path: Path) -> None:
    header = tmp_path / "header"
    header.touch()
    program = (
        "import fcntl, os, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(); sys.stdin.read()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-S", "-c", program, header], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client,
        header.open("r+b") as file,
    ):
        assert client.stdout is not None
        assert client.stdout.read(1)
        assert is_locked(file.fileno())
        client.kill()
        client.wait()
        assert not is_locked(file.fileno())


def test_memory_of_a_client_that_has_ended_is_not_accessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA leaves it open what an access does then; an error would end the decoder."""
    runtime = install(monkeypatch)
    ring = Ring("cuda", SIZE)
    address = RingAddress(**ring.option())
    server_end = PcmRing.open(address)
    assert server_end.put(np.ones(16, np.float32)) is not None
    assert server_end.has_owner
    fcntl.flock(ring._lock, fcntl.LOCK_UN)  # as the kernel does when the process ends
    copied = runtime.num_copies
    assert not server_end.has_owner
    for place in (None, 1 << 40):
        with pytest.raises(Cancelled, match="the client of the ring has ended"):
            server_end.put(np.ones(16, np.float32), place)
    assert runtime.num_copies == copied
    server_end.close()
    with pytest.raises(InvalidRequest, match=r"ring\.name: expected a header that its client has locked"):
        PcmRing.open(address)
    assert not runtime.opened
    ring.close()


def test_gpu_ring_memory_is_allocated_in_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA allocates small pieces from a block, and a handle opens the complete block."""
    runtime = install(monkeypatch)
    ring = Ring("cuda", SIZE)
    assert [len(buffer) % (1 << 21) for buffer in runtime.buffers.values()] == [0]
    ring.close()


def test_memory_truncated_by_its_client_is_an_invalid_request(server_end: PcmRing, client_end: Ring) -> None:
    path = Path("/dev/shm") / client_end.option()["name"]
    server_end.put(np.ones(16, np.float32))
    with path.open("r+b") as file:
        file.truncate(0)
    with pytest.raises(InvalidRequest, match="at least 4096 bytes"):
        server_end.put(np.ones(16, np.float32))
    with path.open("r+b") as file:  # so that the client's own mapping is whole again
        file.truncate(HEADER + 256)


def test_system_shared_memory_region_is_removed_on_close() -> None:
    region = SystemRegion("stretto_test", 128)
    path = Path("/dev/shm") / region.name
    region.write(np.arange(4, dtype=np.int64))
    assert region.read(8, 8).view(np.int64)[0] == 1
    assert path.exists()
    region.close()
    assert not path.exists()
