"""Both ends of a ring: the client reads the server's samples, and neither overtakes the other."""

import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from stretto.errors import InvalidRequest, Overloaded
from stretto.records.sampling import RingAddress
from stretto.triton_io import cuda_ring
from stretto.triton_io.cuda_ring import CudaRings
from stretto.triton_io.ring import PcmRing, check_ring
from stretto_client import ServerUnavailable
from stretto_client.shared_memory import HEADER, Ring, RingSize, SystemRegion
from stretto_contract.schema import Memory
from tests.cuda_runtime import GRANULARITY, NOT_SUPPORTED, OUT_OF_MEMORY, FakeCuda, Status, install_for
from tests.patience import until
from tests.tiers import by_night

SIZE = RingSize(slots=4, slot_bytes=64)  # 16 samples of float32 to a slot


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install_for(monkeypatch)


@pytest.fixture
def rings(cuda: FakeCuda) -> CudaRings:
    return CudaRings("cuda:1")


@pytest.fixture(params=["system", "cuda"])
def client_end(request: pytest.FixtureRequest, cuda: FakeCuda) -> Iterator[Ring]:
    ring = Ring(request.param, SIZE)
    yield ring
    ring.close()
    assert cuda.is_unused


@pytest.fixture
def server_end(client_end: Ring, rings: CudaRings) -> Iterator[PcmRing]:
    ring = PcmRing.open(RingAddress(**client_end.option()), rings)
    yield ring
    ring.close()
    assert rings.num_bytes == 0


@dataclass
class Clients:
    """Clients with rings in GPU memory.

    Attributes:
        rings: Allocator of the decoder, on GPU 1.
        opened: Both ends of all rings.
    """

    rings: CudaRings
    opened: list[tuple[Ring, PcmRing]] = field(default_factory=list)

    def open(self, slots: int = 4, slot_bytes: int = 64, host: str = "") -> tuple[Ring, PcmRing]:
        """Open a ring in GPU memory."""
        client_end = Ring("cuda", RingSize(slots, slot_bytes))
        try:
            server_end = PcmRing.open(RingAddress(**client_end.option()), self.rings, host)
        except BaseException:
            client_end.close()
            raise
        self.opened.append((client_end, server_end))
        return client_end, server_end

    def close(self, client_end: Ring, server_end: PcmRing) -> None:
        """Close both ends of a ring."""
        self.opened.remove((client_end, server_end))
        server_end.close()
        client_end.close()


@pytest.fixture
def clients(rings: CudaRings, cuda: FakeCuda) -> Iterator[Clients]:
    made = Clients(rings)
    yield made
    for pair in list(made.opened):
        made.close(*pair)
    assert cuda.is_unused
    assert rings.num_bytes == 0


def test_ring_samples_round_trip(client_end: Ring, server_end: PcmRing) -> None:
    random = np.random.default_rng(0)
    for size in (1, 16, 17, 64, 40, 0, 33, 64, 5):
        samples = random.standard_normal(size).astype(np.float32)
        record = server_end.put(samples)
        assert record is not None
        assert record["slots"] == -(-size // 16)
        np.testing.assert_array_equal(client_end.read_samples(record), samples)


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
        expected = on_device if client_end.option()["memory"] == "cuda" else on_host
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
    server_end = PcmRing.open(RingAddress(**client_end.option()), CudaRings("cpu"))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, bytes(data)[:12], offset))
    with pytest.raises(InvalidRequest, match=r"expected enough shared memory for its slots, got 12 of 64 bytes"):
        server_end.put(np.ones(16, np.float32))
    monkeypatch.undo()
    server_end.close()
    client_end.close()


def test_files_that_are_not_rings_are_refused_without_revealing_them(tmp_path: Path) -> None:
    address = RingAddress("stretto_ring_0011223344556677")
    path = tmp_path / address.name

    def refusal() -> str:
        with pytest.raises(InvalidRequest) as refused:
            PcmRing.open(address, CudaRings("cpu"), directory=tmp_path)
        assert str(tmp_path) not in str(refused.value)
        return str(refused.value)

    assert refusal().endswith(f"got {address.name}: No such file or directory")
    for content in (b"", bytes(HEADER), b"STRING1\0" + b"secret!!" * 600, b"secret!!" * 600):
        path.write_bytes(content)
        assert re.search(r"ring\.name: .*got (memory with an invalid header|0 bytes)$", refusal())
        assert path.read_bytes() == content
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "shared memory of this host" in refusal()


def test_pipes_and_hard_links_are_refused_as_rings(tmp_path: Path, client_end: Ring) -> None:
    address = RingAddress(**client_end.option())
    elsewhere = Path("/dev/shm") / address.name
    os.mkfifo(tmp_path / address.name)
    with pytest.raises(InvalidRequest, match="shared memory of this host"):
        PcmRing.open(address, CudaRings("cpu"), directory=tmp_path)
    second = elsewhere.with_name("stretto_ring_8899aabbccddeeff")
    os.link(elsewhere, second)
    try:
        with pytest.raises(InvalidRequest, match="shared memory of this host"):
            PcmRing.open(address, CudaRings("cpu"))
    finally:
        second.unlink()


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


def test_ring_is_validated_before_the_decoder_allocates_memory(cuda: FakeCuda) -> None:
    """The preprocessor does not need a GPU; a large ring is refused before anything is generated."""
    check_ring(None)
    largest, larger = (Ring("cuda", RingSize(slots, 1 << 16)) for slots in (256, 257))
    check_ring(RingAddress(**largest.option()))
    with pytest.raises(InvalidRequest, match="16777216 bytes at most on a GPU"):
        check_ring(RingAddress(**larger.option()))
    for ring in (largest, larger):
        ring.close()
    assert cuda.runtime.device == -1
    with pytest.raises(InvalidRequest, match=r"ring\.name"):
        check_ring(RingAddress("stretto_ring_0011223344556677"))


def test_gpu_memory_of_a_ring_is_freed_once_both_ends_have_closed_it(clients: Clients, cuda: FakeCuda) -> None:
    """The decoder closes its end before it sends the last event, and the client then reads the last samples."""
    client_end, server_end = clients.open()
    record = server_end.put(np.arange(40, dtype=np.float32))
    clients.opened.clear()
    server_end.close()
    assert (clients.rings.num_bytes, cuda.is_unused) == (0, True)
    np.testing.assert_array_equal(client_end.read_samples(record), np.arange(40, dtype=np.float32))
    assert len(cuda.runtime.mappings) == 1
    client_end.close()
    assert cuda.is_unused


def test_ring_of_a_client_without_samples_leaves_nothing(clients: Clients, cuda: FakeCuda) -> None:
    client_end, server_end = clients.open()
    open_files = len(os.listdir("/proc/self/fd"))
    clients.close(client_end, server_end)
    assert cuda.is_unused
    assert len(os.listdir("/proc/self/fd")) < open_files
    assert not [each for each in os.listdir("/dev/shm") if each.startswith(client_end.option()["name"])]


CLIENT = """
import sys
from tests.cuda_runtime import install
install()
from stretto_client.shared_memory import Ring, RingSize
ring = Ring("cuda", RingSize(4, 64))
print(ring.option()["name"], flush=True)
while record := sys.stdin.readline():
    print(ring.read_samples(eval(record)).tolist(), flush=True)
"""


@pytest.mark.slow
def test_killed_client_harms_neither_the_decoder_nor_other_clients(clients: Clients, cuda: FakeCuda) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        server_end = PcmRing.open(RingAddress(name, "cuda"), clients.rings)
        other_client, other_server = clients.open()
        record = server_end.put(np.ones(3, np.float32))
        process.stdin.write(f"{record}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "[1.0, 1.0, 1.0]\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        for value in range(4):  # until its slots are full
            assert server_end.put(np.full(16, value, np.float32)) is not None
            record = other_server.put(np.full(16, value, np.float32))
            np.testing.assert_array_equal(other_client.read_samples(record), np.full(16, value, np.float32))
    assert server_end.put(np.zeros(16, np.float32)) is None
    assert clients.rings.num_bytes == 2 * GRANULARITY
    server_end.close()
    assert clients.rings.num_bytes == GRANULARITY
    assert len(cuda.runtime.mappings) == 2, "of the other client's ring"


def test_gpu_memory_for_rings_is_limited_and_shared_fairly(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.rings._bytes, "limit", 4 * GRANULARITY)
    kept = [clients.open(host="a") for _ in range(2)]
    message = r"^GPU memory: 4194304 bytes of rings, 4194304 of them of this host, are in use"
    with pytest.raises(Overloaded, match=message):
        clients.open(host="a")
    clients.open(host="b")
    with pytest.raises(Overloaded, match=r"6291456 bytes of rings, 4194304 of them of this host"):
        clients.open(host="a")
    clients.close(*kept[0])
    clients.open(host="a")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (OUT_OF_MEMORY, Overloaded, "too little is free for a ring of 2097152 bytes; try again"),
        (NOT_SUPPORTED, InvalidRequest, r"memory: expected system, because this GPU's memory cannot be shared \(cuMem"),
    ],
)
@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemSetAccess"])
def test_memory_that_cuda_does_not_allocate_is_an_error_of_its_client(
    clients: Clients, cuda: FakeCuda, call: str, status: Status, error: type[Exception], message: str
) -> None:
    cuda.driver.failing[call] = status
    with pytest.raises(error, match=message):
        clients.open()
    assert cuda.is_unused
    cuda.driver.failing.clear()
    clients.open()


def test_gpu_memory_of_a_ring_has_no_other_data(clients: Clients) -> None:
    client_end, _ = clients.open()
    assert client_end._device is not None
    assert not client_end._device.read(0, GRANULARITY).any()


def test_decoder_without_free_descriptors_is_full(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    ring = Ring("cuda", SIZE)
    with monkeypatch.context() as patched:
        patched.setattr(cuda_ring.os, "open", refuse)
        with pytest.raises(Overloaded, match="GPU memory: Too many open files; try again"):
            clients.rings.allocate(Path("/dev/shm") / ring.option()["name"], 64, "")
    ring.close()


def test_decoder_on_a_cpu_refuses_a_gpu_ring(cuda: FakeCuda) -> None:
    with pytest.raises(
        InvalidRequest, match="expected system, because the decoder of this server has no GPU, got cuda"
    ):
        Clients(CudaRings("cpu")).open()


def test_gpu_ring_without_its_client_is_refused(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it, and the decoder sends no descriptor to another program."""
    expected = r"ring\.name: expected a ring with a datagram socket of the server's user, got "
    ring = Ring("cuda", SIZE)
    address = RingAddress(**ring.option())
    path = Path("/dev/shm") / f"{address.name}_socket"
    with monkeypatch.context() as patched:
        patched.setattr(cuda_ring.os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(InvalidRequest, match=f"{expected}{path.name}: no socket, or one of another user"):
            PcmRing.open(address, clients.rings)
    assert ring._device is not None
    ring._device._socket.close()
    with pytest.raises(InvalidRequest, match=f"{expected}{path.name}: Connection refused"):
        PcmRing.open(address, clients.rings)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        elsewhere = path.with_name(f"{path.name}_elsewhere")
        other.bind(str(elsewhere))
        path.unlink()
        path.symlink_to(elsewhere)
        with pytest.raises(InvalidRequest, match=expected):
            PcmRing.open(address, clients.rings)
        elsewhere.unlink()
    path.unlink()
    path.write_bytes(b"")
    with pytest.raises(InvalidRequest, match=f"{expected}{path.name}: no socket"):
        PcmRing.open(address, clients.rings)
    path.unlink()
    with pytest.raises(InvalidRequest, match=f"{expected}{path.name}: No such file"):
        PcmRing.open(address, clients.rings)
    ring.close()


def test_full_socket_of_a_client_does_not_block_the_decoder(clients: Clients) -> None:
    ring, opened = Ring("cuda", SIZE), list[PcmRing]()

    def fill() -> None:
        while True:
            opened.append(PcmRing.open(RingAddress(**ring.option()), clients.rings))

    with pytest.raises(InvalidRequest, match="Resource temporarily unavailable"):
        fill()
    for each in opened:
        each.close()
    ring.close()


@pytest.mark.parametrize("num_sent", [None, 0, 1, 2])
def test_client_refuses_what_is_no_descriptor_of_gpu_memory(cuda: FakeCuda, num_sent: int | None) -> None:
    ring = Ring("cuda", SIZE)
    if num_sent is not None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, Path(__file__).open() as file:
            sender.connect(f"/dev/shm/{ring.option()['name']}_socket")
            socket.send_fds(sender, [b"0000:3B:00.0"], [file.fileno()] * num_sent)
    with pytest.raises(ServerUnavailable, match="GPU memory"):
        ring.read_samples({"slot": 0, "slots": 1, "samples": 16, "dtype": "float32"})
    ring.close()
    assert cuda.is_unused


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["cuda", *by_night("system")])
def test_killed_client_leaves_no_files(memory: Memory) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT.replace('"cuda"', f'"{memory}"')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert [each for each in os.listdir("/dev/shm") if each.startswith(name)]
        process.kill()
        process.wait()
        until(lambda: not [each for each in os.listdir("/dev/shm") if each.startswith(name)])
