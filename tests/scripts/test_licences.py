"""The licence table lists an SBOM's packages with their declared licences; missing licences are reported."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.licences import main, rows

COMPONENTS: list[dict[str, Any]] = [
    {"name": "Zope", "version": "2", "licenses": [{"license": {"id": "ZPL-2.1"}}]},
    {"name": "numpy", "version": "1.26.4", "licenses": [{"expression": "BSD-3-Clause AND MIT"}]},
    {
        "name": "grpcio",
        "version": "1.80",
        "licenses": [
            {"license": {"name": "License :: OSI Approved :: Apache Software License"}},
            {"license": {"name": "Apache License\nVersion 2.0, and all of its text"}},
        ],
    },
    {"name": "long", "version": "1", "licenses": [{"license": {"name": "Permission is hereby granted, " * 20}}]},
]


def written(tmp_path: Path, components: list[dict[str, Any]]) -> tuple[int, str]:
    source = tmp_path / "sbom.json"
    source.write_text(json.dumps({"bomFormat": "CycloneDX", "components": components}))
    status = main([str(source), str(tmp_path / "licences.md")])
    return status, (tmp_path / "licences.md").read_text()


def test_licence_table_is_written(tmp_path: Path) -> None:
    scipy = {"name": "Scipy", "version": "1.15", "licenses": [{"expression": "BSD-3-Clause AND MIT"}]}
    status, text = written(tmp_path, [scipy, *COMPONENTS[:3]])
    assert status == 0
    assert text.splitlines()[-3:] == [
        "| Apache License, Apache Software License | grpcio |",
        "| BSD-3-Clause AND MIT | numpy, Scipy |",
        "| ZPL-2.1 | Zope |",
    ]


def test_error_names_components_without_a_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = written(tmp_path, [*COMPONENTS, {"name": "silent", "version": "3"}])
    assert status == 1
    assert "| not stated | long, silent |" in text
    assert "no licence is stated by long, silent" in capsys.readouterr().err


def test_invalid_sboms_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an SBOM of CycloneDX, got bomFormat None"):
        list(rows({}))
