"""Conversion of a release with one value of a config replaced, in a process with bounded time and memory.

    python -m tests.mutated_releases LAYOUT KIND STRIDE [LAYOUT KIND STRIDE ...]

writes the release of each layout (`tests/family_releases.py`), replaces one value after the other by each value of a
kind (`VALUES`), and prints a line of JSON for each conversion that neither succeeds nor is refused in one line. Only
every STRIDE-th conversion is done. Each runs in a fork, which is ended if it exceeds the limits.
"""

import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

from stretto.convert.command import main as convert
from tests.family_releases import LAYOUTS

CPU_S, MEMORY_BYTES = 20, 6 << 30  # limits of a conversion, whose usual time is at most 5 s
# Entries of a list and of a mapping, beyond which only the first, the last and one in the middle are replaced.
MAX_ITEMS, MAX_KEYS = 10, 200
INFINITY = float("inf")
VALUES: dict[str, tuple[Any, ...]] = {
    "integers": (1 << 63, 30_000_000, -1),
    "types": ("text", None, [], {}, [1], 1e300, INFINITY, float("nan"), True, 0, "\ud800"),
}
SCALAR = re.compile(r"^(\s*(?:- )?[\w.]+: )([^\s!&*{\[|>#][^#\n]*)$", re.MULTILINE)
Place = tuple[str | int, ...]


def leaves(value: Any, kind: str, above: Place = ()) -> Iterator[Place]:
    """Yield the places of values to replace; for integers, only those of integers."""
    if isinstance(value, dict | list):
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        most = MAX_KEYS if isinstance(value, dict) else MAX_ITEMS
        keys = keys if len(keys) <= most else [keys[0], keys[len(keys) // 2], keys[-1]]
        for key in keys:
            yield from leaves(value[key], kind, (*above, key))
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if above and (is_integer or kind != "integers"):
        yield above


def replaced(record: Any, place: Place, value: Any) -> Any:
    """Return a copy of a record with another value at a place."""
    copy = deepcopy(record)
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def mutations(path: Path, kind: str) -> Iterator[tuple[str, str]]:
    """Yield descriptions of changes to a config file, and its text with them."""
    text = path.read_text()
    if "!new:" in text or "!ref" in text:  # not plain YAML
        for match in SCALAR.finditer(text):
            for value in VALUES[kind]:
                written = json.dumps(value).replace("Infinity", ".inf").replace("NaN", ".nan")
                if kind != "integers" or match[2].strip().isdigit():
                    yield f"{match[0].strip()} = {written}", text[: match.start(2)] + written + text[match.end(2) :]
        return
    is_json = path.suffix == ".json"
    record = json.loads(text) if is_json else yaml.safe_load(text)
    for place in leaves(record, kind):
        for value in VALUES[kind]:
            if is_json:
                made = json.dumps(replaced(record, place, value))
            elif value == "\ud800":  # which YAML cannot contain
                continue
            else:
                made = yaml.safe_dump(replaced(record, place, value), sort_keys=False)
            yield f"{'.'.join(map(str, place))} = {value!r}", made


def conversion(words: list[str], out: Path) -> str:
    """Return the complaint about a conversion in a fork; empty if it succeeds, or is refused in one line."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        errors, complaint = io.StringIO(), ""
        warnings.simplefilter("ignore")  # of libraries
        try:
            with redirect_stderr(errors), redirect_stdout(io.StringIO()):
                status = convert([*words, "--out", str(out)])
            said = errors.getvalue()
            if status == 1 and (said.count("\n") != 1 or not said.startswith("stretto convert: ")):
                complaint = f"expected one line, got {said[-1000:]!r}"
            elif status == 1 and out.exists():
                complaint = "the checkpoint exists"
        except BaseException as error:
            complaint = f"expected a refusal, got {error!r}"[:1000]
        os.write(writing, complaint.encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        complaint = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return complaint if status == 0 else f"ended by a signal or with a status: {status}"


def main(layout: str, kind: str, stride: int) -> None:
    """Print the complaints about a layout."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "published", Path(scratch) / "out"
        folder.mkdir()
        words, number = LAYOUTS[layout].command(folder), -1
        with redirect_stdout(io.StringIO()):  # in this process, which so imports what each fork would import otherwise
            assert convert([*words, "--out", str(out)]) == 0
        for path in sorted(each for each in folder.rglob("*") if each.suffix in (".json", ".yaml")):
            published = path.read_bytes()
            for description, text in mutations(path, kind):
                number += 1
                if number % stride:
                    continue
                shutil.rmtree(out, ignore_errors=True)
                path.write_text(text, errors="surrogatepass")
                if complaint := conversion(words, out):
                    name = path.relative_to(folder).as_posix()
                    print(json.dumps({"file": name, "change": description, "complaint": complaint}), flush=True)
            path.write_bytes(published)
        print(json.dumps({"conversions": 1 + number // stride}))


if __name__ == "__main__":
    for layout, kind, stride in zip(*(sys.argv[first::3] for first in (1, 2, 3)), strict=True):
        main(layout, kind, int(stride))
