"""docs/limits.md against the code: every limit that a client can meet, its value, and words of its refusal."""

import importlib
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from setup import PLUGINS, entry_points
from stretto.errors import FULL
from stretto_gateway.config import Limits
from tests import fakes_triton

fakes_triton.install()  # before modules of `triton_io` are imported

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "limits.md"
SERVER = ROOT / "python_backend"
GATEWAY = ROOT / "gateway"
CONTRACT = ROOT / "contract"
ROOTS = (SERVER, GATEWAY, CONTRACT, *(ROOT / folder for folder in PLUGINS.values()))
ROUTES = [point.partition(":")[0].split(".") for point in entry_points()["stretto_gateway.routes"].values()]
ROUTES_OF_PLUGINS = [ROOT.joinpath(PLUGINS[name[0]], *name[:-1]) for name in ROUTES if name[0] in PLUGINS]
# Code that refuses what clients send. Limits of families are on their pages; limits of files are in docs/security.md.
CLIENT_FACING = [
    *(SERVER / "stretto" / name for name in ("proxy", "preprocessing", "records", "triton_io", "verification")),
    *(SERVER / "stretto" / "engine" / name for name in ("utterance.py", "permits.py")),
    GATEWAY / "stretto_gateway",
    *ROUTES_OF_PLUGINS,
    *(CONTRACT / "stretto_contract" / f"{name}.py" for name in ("schema", "pronunciation", "lexicon_files")),
]
KINDS = ("MAX_", "MIN_", "LONGEST_", "LOWEST_", "HIGHEST_", "LEAST_", "GREATEST_")
ASSIGNED = re.compile(r"^([A-Z][A-Z0-9_]+(?:, [A-Z][A-Z0-9_]+)*) = ", re.MULTILINE)
# Limits that no client meets, by the reason.
NOT_MET = {
    "checked by the preprocessor, which writes the record": {
        "stretto.records.prompt.MAX_AUDIO_S",
        "stretto.records.prompt.MAX_CONDITION_BYTES",
        "stretto.records.prompt.MAX_CONDITION_WIDTH",
        "stretto.records.prompt.MAX_MAGNITUDE",
        "stretto.records.chunk.MAX_SOUND_TOKENS",
        "stretto.records.chunk.MAX_SOUND_BYTES",
        "stretto.records.chunk.MAX_MELS",
        "stretto.records.chunk.MAX_X_VECTOR",
    },
    "of records that one model of the ensemble writes for another": {
        "stretto.records.chunk.MAX_EARLY_BYTES",
        "stretto.records.flow_address.MAX_GENERATION",
        "stretto.records.prompt.MAX_FIRST_FRAMES",
    },
    "part of a message, such as the number of names that it lists": {
        "stretto.records.json_record.MAX_LISTED",
        "stretto.records.json_record.MAX_KEY_CHARS",
        "stretto.records.json_record.MAX_MESSAGE",
        "stretto.triton_io.flow.MAX_REASON_BYTES",
        "stretto.preprocessing.decoders.MAX_TAG_CHARS",
        "stretto_contract.schema.MAX_LISTED",
        "stretto_gateway.fields.MAX_NAME_CHARS",
        "stretto_gateway.fields.MAX_CHOSEN",
        "stretto_gateway.fields.MAX_NAMES",
        "stretto_gateway.fields.MAX_SHOWN_CHARS",
        "stretto_gateway.catalogue.MAX_NAME_CHARS",
        "stretto_gateway.catalogue.MAX_NAMED",
        "stretto_gateway.realtime.settings.MAX_ERRORS",
        "stretto_gateway.realtime.settings.MAX_IGNORED",
    },
    "of the server's own pages, retries, measurements or commands": {
        "stretto.proxy.pages.MAX_PAGE_BYTES",
        "stretto.proxy.refused_hosts.MAX_HOSTS",
        "stretto.triton_io.stub.MAX_AWAKE",
        "stretto.engine.permits.MIN_FACTOR",
        "stretto_gateway.catalogue.MAX_FAILED",
        "stretto_gateway.command.MAX_ALIAS_CHARS",
        "stretto_gateway.command.MAX_TAG_CHARS",
        "stretto_gateway.realtime.end_of_turn.MAX_FILE_BYTES",
        "stretto_gateway.voice_command.MAX_KEY_FILE_BYTES",
        "stretto_gateway.realtime.conversation.MAX_CHAR_BYTES",
        "stretto_telephone.channel.MAX_LOGGED",
    },
    "of the packets of a WebRTC call, above those of any browser": {
        "stretto_webrtc.peer.MAX_ADDRESSES",
        "stretto_webrtc.peer.MAX_CHANNELS",
        "stretto_webrtc.peer.MAX_CHUNKS",
        "stretto_webrtc.peer.MAX_DATAGRAMS",
        "stretto_webrtc.peer.MAX_DATAGRAM_BYTES",
        "stretto_webrtc.peer.MAX_DECODING",
        "stretto_webrtc.peer.MAX_HEARD_S",
        "stretto_webrtc.peer.MAX_LABEL_CHARS",
        "stretto_webrtc.peer.MAX_SOURCES",
        "stretto_webrtc.peer.MAX_STUN_ATTRIBUTES",
        "stretto_webrtc.peer.MAX_STUN_BYTES",
    },
    "of Opus packets, above those of any encoder": {
        "stretto_gateway.ogg.MAX_PACKET_BYTES",
        "stretto_gateway.ogg.MAX_SILENT_PAGES",
        "stretto_gateway.ogg.MIN_HEADER_BYTES",
    },
}


def rows() -> list[list[str]]:
    """Return the cells of the page's table rows: the limit, how much, the refusal, and what sets it."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines if not line.startswith("| limit |")]


def named(cell: str) -> list[str]:
    """Return the dotted names of constants in a cell."""
    return re.findall(r"`(stretto(?:_\w+)?(?:\.\w+)+\.\w+)`", cell)


def value_of(name: str) -> Any:
    """Return the value of a constant, or the default of a field of the gateway's `Limits`."""
    module, _, constant = name.rpartition(".")
    if module.endswith(".Limits"):
        return getattr(Limits(), constant)
    return getattr(importlib.import_module(module), constant)


def spellings(value: float) -> set[str]:
    """Return how the page may write a limit."""
    found = {f"{value:g}", f"{value:,}", str(value)}
    if isinstance(value, float) and value.is_integer():
        found.add(f"{int(value):,}")
    if isinstance(value, int):
        units = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "MB": 1_000_000}
        found |= {f"{value // size} {unit}" for unit, size in units.items() if value and value % size == 0}
        found |= {f"2^{value.bit_length() - 1}"} if value and value & (value - 1) == 0 else set()
    return found


def defined_limits() -> set[str]:
    """Return the dotted names of all limits that client-facing code defines."""
    found = {f"stretto_gateway.config.Limits.{field.name}" for field in fields(Limits)}
    for root in ROOTS:
        for path in [each for top in CLIENT_FACING for each in ([top] if top.is_file() else top.rglob("*.py"))]:
            if path.is_relative_to(root):
                module = ".".join(path.relative_to(root).with_suffix("").parts)
                names = [name for line in ASSIGNED.findall(path.read_text()) for name in line.split(", ")]
                found |= {f"{module}.{name}" for name in names if name.startswith(KINDS)}
    return found


@cache
def code() -> str:
    text = "\n".join(path.read_text() for folder in ROOTS for path in sorted(folder.rglob("*.py")))
    return text.replace("{FULL}", FULL)


@pytest.mark.slow
def test_page_states_the_values_in_the_code() -> None:
    wrong = []
    for _, amount, _, source in rows():
        for name in named(source):
            if not any(
                re.search(rf"(?<![\d.,]){re.escape(each)}(?!,?\d)", amount) for each in spellings(value_of(name))
            ):
                wrong.append(f"{name} is {value_of(name)}, but the page has {amount!r}")
    assert not wrong, "\n".join(wrong)


def test_every_limit_of_the_code_is_on_the_page_once() -> None:
    listed = [name for *_, source in rows() for name in named(source)]
    excused = {name for names in NOT_MET.values() for name in names}
    defined = defined_limits()
    assert len(defined) > 100
    assert sorted(defined - set(listed) - excused) == [], "add a row to docs/limits.md, or a reason to NOT_MET"
    assert sorted(set(listed) & excused) == []
    assert sorted(excused - defined) == []
    assert len(listed) == len(set(listed))


def test_refusals_on_the_page_have_the_words_of_the_code() -> None:
    parts = [
        part.strip()
        for _, _, refusal, _ in rows()
        for span in re.findall(r"`([^`]+)`", refusal)
        for part in span.split("…")
    ]
    missing = sorted({part for part in parts if part not in code()})
    assert len(parts) > 60
    assert not missing


def test_page_states_the_limits_of_the_model_repository() -> None:
    settings = [re.fullmatch(r"`(\w+)` of `(\w+)/config\.pbtxt`", source) for *_, source in rows()]
    found = [(match[1], match[2], row[1]) for match, row in zip(settings, rows(), strict=True) if match]
    assert len(found) == 3
    for parameter, model, amount in found:
        config = (ROOT / "model_repository" / model / "config.pbtxt").read_text()
        value = re.search(rf'key: "{parameter}" value {{ string_value: "(\d+)"', config)
        assert value, parameter
        assert amount.split()[0].replace(",", "") == value[1]
