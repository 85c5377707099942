"""deploy/: all metrics in dashboard, rules and scaling are provided by the gateway, the server or Triton."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stretto.proxy.pages import ASLEEP
from tests.deploy.test_kubernetes import OBJECTS
from tests.gateway.conftest import Start
from tests.gateway.test_transcription import FILE

ROOT = Path(__file__).parents[2]
RIM = ROOT / "python_backend" / "stretto" / "triton_io"
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/stretto.json").read_text())
RULES, RECORDED = (
    [
        rule
        for group in yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["groups"]
        for rule in group["rules"]
    ]
    for name in ("alerts.yaml", "vllm_omni.yaml")
)
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
(SCALING,) = [each["spec"]["triggers"] for each in OBJECTS if each["kind"] == "ScaledObject"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS += [rule["expr"] for rule in (*RULES, *RECORDED)]
EXPRESSIONS += [trigger["metadata"]["query"] for trigger in SCALING]
TRITONS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_inference_request_failure"}
WORDS = {"and", "or", "unless", "bool"}
LABELS = {"family", "task", "le", "instance", "status", "gpu_uuid", "model", "route", "reason", "fault"}
SPEECH = {"model": "tts-1", "voice": "alloy", "input": "A cat.", "response_format": "pcm"}


def names(expression: str) -> set[str]:
    """Return the metrics in an expression: its words except functions, groupings, matchers, ranges and operators."""
    bare = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"', "", expression)
    bare = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - WORDS


def of_the_server() -> set[str]:
    """Return the metrics that the server's models declare in METRICS, read from their source."""
    found = set[str]()
    for path in RIM.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "METRICS"
            ):
                table: dict[str, str | tuple[str, str]] = ast.literal_eval(node.value)
                found |= {field if isinstance(told, str) else told[0] for field, told in table.items()}
    return {f"stretto_{field}" for field in found}


async def of_the_gateway(start: Start) -> set[str]:
    """Return the metrics in `/metrics` after one utterance and one transcript."""
    running = await start()
    async with running.http() as http:
        assert (await http.post("/v1/audio/speech", json=SPEECH)).status_code == 200
        assert (await http.post("/v1/audio/transcriptions", files={"file": FILE})).status_code == 200
        page = (await http.get("/metrics")).text
    return {re.split(r"[{ ]", line)[0] for line in page.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum by (le) (rate(a_b_bucket{le="0.1", x=~"c|d"}[5m])) > 2', {"a_b_bucket"}),
        ("absent(up)", {"up"}),
        ("x / on(job) group_left() y and z", {"x", "y", "z"}),
    ],
)
def test_metric_names_are_found_in_expressions(expression: str, expected: set[str]) -> None:
    assert names(expression) == expected


async def test_dashboard_metrics_exist(start: Start) -> None:
    asked = set[str]().union(*map(names, EXPRESSIONS))
    known = await of_the_gateway(start) | of_the_server() | {ASLEEP}
    assert {"stretto_unguided_total", "stretto_decoder_waiting_chunks", "audio_unchecked_total"} <= known & asked
    assert asked <= known | TRITONS


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_expressions_are_well_formed(expression: str) -> None:
    assert names(expression)
    assert [expression.count(left) - expression.count(right) for left, right in ("()", "[]", "{}")] == [0, 0, 0]
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(group.split(", ")) <= LABELS, expression


def test_dashboard_panels_do_not_overlap_and_rules_are_unique() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places) >= 10
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
    assert len({rule["record"] for rule in RECORDED}) == len(RECORDED) >= 10
    assert all(rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"] for rule in RULES)
