"""Trimming of made-up ELF files that contain a fat binary."""

import lzma
import random
import struct

from benchmarks.gpu.bundling.contents import CUBIN, MAGIC, PTX, trim

HEADER, SECTION_HEADER = 64, 64
NAMES = b"\0.nv_fatbin\0.shstrtab\0.text\0"
CODE = b"code of the host, which calls what is below"
Entries = list[tuple[int, int, bytes]]  # kind, architecture, payload


def container(entries: Entries) -> bytes:
    body = b""
    for kind, architecture, payload in entries:
        header = struct.pack("<HHIQ", kind, 0x101, 64, len(payload)) + bytes(12) + struct.pack("<I", architecture)
        body += header.ljust(64, b"\0") + payload
    return struct.pack("<IHHQ", MAGIC, 1, 16, len(body)) + body


def library(*containers: bytes) -> bytes:
    """Return an ELF file with three sections: fat binary, names and code.

    Eight bytes of padding follow each container.
    """
    contents = [b"".join(each + bytes(8) for each in containers), NAMES, CODE]
    headers, body = [bytes(SECTION_HEADER)], b""
    for name, content in zip((b".nv_fatbin", b".shstrtab", b".text"), contents, strict=True):
        place = HEADER + len(body), len(content)
        headers.append(struct.pack("<IIQQQQ", NAMES.index(name), 1, 0, 0, *place).ljust(SECTION_HEADER, b"\0"))
        body += content
    file = bytearray(HEADER) + body + b"".join(headers)
    file[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", file, 0x28, HEADER + len(body))
    struct.pack_into("<HHH", file, 0x3A, SECTION_HEADER, len(headers), 2)
    return bytes(file)


def noise(seed: int, size: int = 4000) -> bytes:
    return random.Random(seed).randbytes(size)


def test_trimming_zeroes_code_for_other_architectures() -> None:
    entries: Entries = [(CUBIN, 80, noise(1)), (CUBIN, 90, noise(2)), (CUBIN, 120, noise(3)), (PTX, 80, noise(4))]
    made = library(container(entries))
    trimmed = trim(made, 90)
    kept = [(kind, arch, data if arch == 90 else bytes(len(data))) for kind, arch, data in entries]
    assert trimmed == library(container(kept))
    assert len(lzma.compress(trimmed)) < 0.4 * len(lzma.compress(made))
