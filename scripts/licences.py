"""Generate docs/licences.md, a table of licences and the packages in an SBOM that have them.

    python -m scripts.licences dist/sbom.cdx.json docs/licences.md

The SBOM is CycloneDX JSON, created by `scripts/release.sh` from the serving environment. The exit status is 1 if a
package states no licence and `KNOWN` does not list it.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Packages without a licence classifier; the licence comes from their metadata or LICENSE file.
KNOWN: Mapping[str, str] = {
    "compressed-tensors": "Apache-2.0",
    "nvidia-pytriton": "Apache-2.0",
    "oss-harmony": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "python-rapidjson": "MIT",
    "setuptools": "MIT",
    "supervisor": "BSD-derived (Repoze)",
    "tiktoken": "MIT",
    "transformers": "Apache-2.0",
}
MAX_CHARS = 200  # longer texts are a licence's full text, not its name
INTRO = """\
# Components of the server

Licences that the packages of the server's environment state; `requirements/embedded.txt` has their versions. Made by
`scripts/release.sh` from the SBOM that goes with a release; not edited by hand.

The wheel of `av` contains FFmpeg, which reports "LGPL version 3 or later", and further libraries, x264 and x265 (GPL)
among them. Anyone who redistributes an environment or an image with it redistributes these, too.
"""


def licences_of(component: Mapping[str, Any]) -> str:
    """Return a component's licence names or expressions; empty if none is known."""
    names = []
    for licence in component.get("licenses", []):
        said = (
            licence.get("expression")
            or licence.get("license", {}).get("id")
            or licence.get("license", {}).get("name", "")
        )
        first = said.strip().splitlines()[0].strip() if said.strip() else ""
        if first and len(first) <= MAX_CHARS:
            names.append(first.removeprefix("License :: ").removeprefix("OSI Approved :: "))
    return ", ".join(sorted(set(names))) or KNOWN.get(component["name"], "")


def rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the licences of each package, sorted by name; raise ValueError for another SBOM format."""
    if record.get("bomFormat") != "CycloneDX":
        raise ValueError(f"expected an SBOM of CycloneDX, got bomFormat {record.get('bomFormat')!r}")
    for component in sorted(record["components"], key=lambda package: package["name"].lower()):
        yield component["name"], licences_of(component)


def table(record: Mapping[str, Any]) -> str:
    """Return the Markdown table of licences, each with its packages."""
    packages = defaultdict(list)
    for name, licences in rows(record):
        packages[licences or "not stated"].append(name)
    lines = [f"| {licences} | {', '.join(packages[licences])} |" for licences in sorted(packages, key=str.lower)]
    return "\n".join(["| licence | packages |", "|---|---|", *lines])


def main(words: list[str]) -> int:
    """Write the table and return the exit status."""
    source, target = map(Path, words)
    record = json.loads(source.read_text())
    target.write_text(f"{INTRO}\n{table(record)}\n")
    untold = [name for name, licences in rows(record) if not licences]
    if untold:
        print(f"licences: no licence is stated by {', '.join(untold)}", file=sys.stderr)
    return 1 if untold else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
