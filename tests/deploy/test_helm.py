"""deploy/helm/: the chart's values are checked, and its objects equal the stored ones.

By night the real Helm installs the chart into a scripted Kubernetes API (`render_chart.py`).
"""

import functools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.test_kubernetes import OBJECTS, OLDEST, OURS, ROOT, SPECS

CHART = ROOT / "deploy/helm/stretto"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
TEMPLATES = {path.name: path.read_text() for path in sorted((CHART / "templates").iterdir())}
HELM = "helm-sdkpy==0.1.32"  # Helm's own Go code; it needs Python 3.12
Object = dict[str, Any]


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of each value in a schema whose fields are known."""
    for name, each in schema["properties"].items():
        if each.get("properties") and name not in ("resources",):
            yield from leaves(each, f"{path}{name}.")
        elif each.get("properties") or name != "global":  # Helm's own values for charts in charts
            yield f"{path}{name}"


def test_chart_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


def test_default_values_are_complete_and_valid() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)
    known = set(leaves(SCHEMA))
    given = set(leaves({"properties": described(VALUES)}))
    assert given == known


def described(values: dict[str, Any]) -> dict[str, Any]:
    """Return the `properties` of a schema for values; maps of the user's own are leaves."""
    own = ("requests", "limits", "nodeSelector")
    return {
        name: {"properties": described(each)} if isinstance(each, dict) and name not in own else {}
        for name, each in values.items()
    }


def test_every_value_is_used() -> None:
    used = {found.rstrip(".") for text in TEMPLATES.values() for found in re.findall(r"\.Values\.([\w.]+)", text)}
    known = set(leaves(SCHEMA))
    assert known <= {*used, *(path.rsplit(".", 1)[0] for path in used)}, "a value without an effect"
    assert used <= {*known, *(f"{path}.{part}" for path in known for part in ("requests", "limits"))}, (
        "an unknown value"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus": {"count": 1}},
        {"gpu": {"count": -1}},
        {"gpu": {"count": "1"}},
        {"gpu": {"resource": "gpu"}},
        {"keys": {"secret": ""}},
        {"keys": {"secret": "stretto-keys", "keys": "sk-1"}},
        {"model": {"path": "../etc"}},
        {"model": {"mountPath": "/tmp"}},
        {"server": {"args": "--marker=perth"}},
        {"server": {"sharedMemory": "8"}},
        {"image": {"tag": "a b"}},
        {"autoscaling": {"prometheus": "prometheus:9090"}},
        {"autoscaling": {"streams": 0}},
    ],
    ids=lambda changes: json.dumps(changes),
)
def test_invalid_values_are_refused(changes: Object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changes, SCHEMA)


def test_templates_close_their_blocks() -> None:
    for name, text in TEMPLATES.items():
        assert text.count("{{") == text.count("}}"), name
        depth = 0
        for word in re.findall(r"\{\{-? *(if|with|range|end|define|block)\b", text):
            depth += -1 if word == "end" else 1
            assert depth >= 0, name
        assert depth == 0, name


@functools.cache
def helm_command() -> list[str] | None:
    """Return the command of a Python with Helm, in an environment that uv keeps; None if there is none."""
    uv, siblings = shutil.which("uv"), Path(sys.base_prefix).parent.glob("*/bin/python3.1[2-9]")
    if uv is None:
        return None
    for python in ("3.12", *map(str, sorted(siblings))):
        command = [uv, "run", "--no-project", "--quiet", "--no-python-downloads", "--python", python, "--with", HELM]
        if subprocess.run([*command, "python", "-c", "import helm_sdkpy"], capture_output=True).returncode == 0:
            return [*command, "python"]
    return None


@functools.cache
def install(values: str = "{}", release: str = "stretto", namespace: str = "stretto") -> list[Object] | str:
    """Return the objects that Helm creates for values in JSON, or its error."""
    command = helm_command()
    if command is None:
        pytest.skip(f"no Python from 3.12 with {HELM}")
    program = str(Path(__file__).with_name("render_chart.py"))
    ran = subprocess.run(
        [*command, program, str(CHART), release, namespace, values], stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[Object] | str = json.loads(ran.stdout)
    return found


def objects(**options: Any) -> dict[tuple[str, str], Object]:
    """Return the objects that Helm creates, by kind and name."""
    found = install(**options)
    assert not isinstance(found, str), found
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@pytest.mark.nightly
def test_helm_creates_the_stored_objects() -> None:
    """After a change of the chart, store what `helm template stretto` prints as JSON, an object in each line."""
    expected = {(each["kind"], each["metadata"]["name"]): each for each in OBJECTS}
    found = objects()
    assert found.keys() == expected.keys()
    for key, each in expected.items():
        assert found[key]["spec"] == each["spec"], key
        assert found[key]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "stretto"


CHANGED: dict[str, Object] = {
    "own model": {
        "model": {"claim": "models", "path": "qwen/served"},
        "voices": {"claim": "voices"},
        "server": {"args": ["--marker=perth"], "startSeconds": 1200, "nodeSelector": {"gpu": "h100"}},
        "image": {"repository": "registry.example.org/speech/stretto", "tag": "1", "pullSecrets": ["pull"]},
        "gpu": {"count": 2, "resource": "amd.com/gpu"},
        "cache": {"storageClass": "fast"},
    },
    "CPU": {
        "gpu": {"count": 0},
        "autoscaling": {"enabled": False},
        "monitoring": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "server": {"replicas": 3, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    },
}


@pytest.mark.nightly
@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("values", CHANGED.values(), ids=CHANGED.keys())
def test_helm_creates_valid_objects_with_other_values(values: Object, version: str) -> None:
    found = objects(values=json.dumps(values), release="voice", namespace="speech")
    for each in found.values():
        if each["apiVersion"] in OURS:
            jsonschema.validate(each["spec"], SPECS[each["kind"]])
        else:
            kubernetes_validate.validate(each, version, strict=True)
    for kind, part in (("StatefulSet", "server"), ("Deployment", "gateway")):
        pod = found[kind, f"voice-{part}"]["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
        assert pod["automountServiceAccountToken"] is False
    assert "stretto-server" not in json.dumps(list(found.values())), "a name of another release"


@pytest.mark.nightly
def test_helm_values_have_their_effects() -> None:
    found = objects(values=json.dumps(CHANGED["own model"]), release="voice", namespace="speech")
    pod = found["StatefulSet", "voice-server"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert server["args"][:4] == ["stretto", "serve", "--model-repository", "/models/qwen/served"]
    assert server["args"][-3:] == ["--start-seconds", "1200", "--marker=perth"]
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] == 1800
    assert server["image"] == "registry.example.org/speech/stretto:1"
    assert server["resources"]["limits"] == {"memory": "48Gi", "amd.com/gpu": "2"}
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in server["volumeMounts"]
    assert (pod["nodeSelector"], pod["imagePullSecrets"]) == ({"gpu": "h100"}, [{"name": "pull"}])
    (claim,) = found["StatefulSet", "voice-server"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    gateway = found["Deployment", "voice-gateway"]["spec"]["template"]["spec"]
    assert gateway["containers"][0]["args"][2:4] == ["--server", "voice-server:8001"]
    assert gateway["containers"][0]["args"][-2:] == ["--voices", "/voices"]
    assert gateway["securityContext"]["fsGroup"] == 10001
    queries = [each["metadata"]["query"] for each in found["ScaledObject", "voice-server"]["spec"]["triggers"]]
    assert all('{namespace="speech"}' in query for query in queries)
    found = objects(values=json.dumps(CHANGED["CPU"]), release="voice", namespace="speech")
    assert not {kind for kind, _ in found} & {"ScaledObject", "PodMonitor", "NetworkPolicy"}
    server = found["StatefulSet", "voice-server"]["spec"]
    assert server["replicas"] == 3
    assert server["template"]["spec"]["containers"][0]["resources"]["limits"] == {"memory": "48Gi"}


@pytest.mark.nightly
def test_helm_refuses_invalid_values() -> None:
    assert "gpu" in str(install('{"gpu": {"count": -1}}'))
    assert isinstance(install('{"gpu": {"count": -1}}'), str)
