"""The objects of deploy/helm: they are valid, and flags, ports, paths, names and limits match the product.

`tests/data/chart_objects.jsonl` has the objects that Helm creates for the default values; `test_helm.py` compares them.
"""

import functools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import kubernetes_validate
import pytest

from stretto.launcher.config import launch_config, parser
from stretto.launcher.supervisor import EXIT_S
from stretto.proxy.pages import MetricsPage, Readiness
from stretto_gateway.app import make_app
from stretto_gateway.command import KEYS, arguments
from stretto_gateway.config import GatewayConfig

ROOT = Path(__file__).parents[2]
STORED = (ROOT / "tests/data/chart_objects.jsonl").read_text()
OBJECTS: list[dict[str, Any]] = [json.loads(line) for line in STORED.splitlines()]
OURS = {"monitoring.coreos.com/v1", "keda.sh/v1alpha1"}  # of operators, unknown to the library
OLDEST = "1.30"  # which knows the `sleep` of preStop
NAMES = {"server": "stretto-server", "gateway": "stretto-gateway"}


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@functools.cache
def pod(part: str) -> dict[str, Any]:
    kind = "StatefulSet" if part == "server" else "Deployment"
    spec: dict[str, Any] = find(kind, NAMES[part])["spec"]["template"]["spec"]
    return spec


def container(part: str) -> dict[str, Any]:
    (only,) = pod(part)["containers"]
    assert "command" not in only, "the image's entry point would not run"
    return dict(only)


def ports(part: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(part)["ports"]}


def probes(part: str) -> Iterator[dict[str, Any]]:
    return (value for name, value in container(part).items() if name.endswith("Probe"))


def strict(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the schema of an object with exactly these fields."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


WORD, COUNT, ANY = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "object"}
SELECTOR = strict({"matchLabels": ANY}, "matchLabels")
KEY_OF = strict({"name": WORD, "key": WORD}, "name", "key")
ENDPOINT = {
    "port": WORD,
    "path": WORD,
    "interval": {"pattern": r"^\d+s$"},
    "authorization": strict({"type": {"const": "Bearer"}, "credentials": KEY_OF}, "credentials"),
}
ENDPOINTS = {"type": "array", "items": strict(ENDPOINT, "port")}
TRIGGER = {
    "type": {"const": "prometheus"},
    "name": WORD,
    "metricType": {"enum": ["AverageValue", "Value"]},
    "metadata": strict(
        {"serverAddress": WORD, "query": WORD, "threshold": {"type": "string", "pattern": r"^\d+(\.\d+)?$"}},
        *("serverAddress", "query", "threshold"),
    ),
}
# The fields of operators' resources that are used here, from their documentation; no library has the resources.
SPECS = {
    "PodMonitor": strict({"selector": SELECTOR, "podMetricsEndpoints": ENDPOINTS}, "selector", "podMetricsEndpoints"),
    "ScaledObject": strict(
        {
            "scaleTargetRef": strict({"apiVersion": WORD, "kind": WORD, "name": WORD}, "name"),
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "pollingInterval": COUNT,
            "advanced": strict({"horizontalPodAutoscalerConfig": strict({"behavior": ANY})}),
            "triggers": {"type": "array", "minItems": 1, "items": strict(TRIGGER, "type", "metadata")},
        },
        *("scaleTargetRef", "triggers"),
    ),
}


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_kubernetes_objects_are_valid(version: str) -> None:
    kubernetes = [each for each in OBJECTS if each["apiVersion"] not in OURS]
    assert len(kubernetes) >= 10
    for each in kubernetes:
        kubernetes_validate.validate(each, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate({**kubernetes[1], "spec": {"replica": 1}}, version, strict=True)


def test_operator_objects_have_known_fields() -> None:
    foreign = [each for each in OBJECTS if each["apiVersion"] in OURS]
    assert {each["kind"] for each in foreign} == set(SPECS)
    for each in foreign:
        jsonschema.validate(each["spec"], SPECS[each["kind"]])
    behavior = find("ScaledObject", "stretto-server")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = find("HorizontalPodAutoscaler", "stretto-gateway")
    kubernetes_validate.validate(
        autoscaler | {"spec": autoscaler["spec"] | {"behavior": behavior}}, OLDEST, strict=True
    )


def test_kubernetes_server_command_matches_the_image() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    args, image = container("server")["args"], json.loads(command)
    assert args[: len(image)] == image
    flags, passed = parser().parse_known_args(args[2:])
    assert not passed
    config = launch_config(flags, passed)
    assert ports("server") == config.ports
    assert (
        container("server")["lifecycle"]["preStop"]["sleep"]["seconds"] + config.drain_seconds + EXIT_S
        < (pod("server")["terminationGracePeriodSeconds"])
    )
    startup = container("server")["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > config.start_seconds


def test_gateway_connects_to_the_server_service() -> None:
    args = container("gateway")["args"]
    assert args[:2] == ["stretto", "gateway"]
    parsed = arguments().parse_args(args[2:])
    (address,) = parsed.server
    host, _, port = address.partition(":")
    (served,) = find("Service", host)["spec"]["ports"]
    assert (served["port"], ports("server")[served["targetPort"]]) == (int(port), 8001)
    assert ports("gateway") == {"gateway": GatewayConfig("").port}
    (entrance,) = find("Service", NAMES["gateway"])["spec"]["ports"]
    assert entrance["targetPort"] in ports("gateway")
    assert (
        container("gateway")["lifecycle"]["preStop"]["sleep"]["seconds"] + parsed.drain_seconds
        < (pod("gateway")["terminationGracePeriodSeconds"])
    )


def test_keys_come_from_a_secret_outside_the_chart() -> None:
    (variable,) = container("gateway")["env"]
    assert variable["name"] == KEYS
    (volume,) = [each["secret"] for each in pod("gateway")["volumes"] if "secret" in each]
    (mount,) = [each for each in container("gateway")["volumeMounts"] if each["name"] == "keys"]
    parsed = arguments().parse_args(container("gateway")["args"][2:])
    assert str(parsed.keys) == f"{mount['mountPath']}/{volume['items'][0]['path']}"
    asked = {(volume["secretName"], volume["items"][0]["key"])}
    asked |= {tuple(variable["valueFrom"]["secretKeyRef"].values())}
    (endpoint,) = find("PodMonitor", NAMES["gateway"])["spec"]["podMetricsEndpoints"]
    assert tuple(endpoint["authorization"]["credentials"].values()) in asked
    assert "Secret" not in {each["kind"] for each in OBJECTS}
    page = (ROOT / "docs/scale.md").read_text()
    for name, key in asked:
        assert f"generic {name} " in page
        assert re.search(rf"--from-(?:file|literal)={key}=", page)


async def test_server_probes_use_existing_endpoints() -> None:
    pages = Readiness(grpc.aio.insecure_channel("127.0.0.1:1"))
    asked = [(probe["httpGet"]["path"], probe["httpGet"]["port"]) for probe in probes("server") if "httpGet" in probe]
    assert set(asked) == {("/v2/health/ready", "http"), ("/health/live", "http")}
    assert (await pages("/v2/health/nowhere")).status == 404
    for name in ("startupProbe", "readinessProbe"):
        assert (await pages(container("server")[name]["httpGet"]["path"])).status == 503
    # The launcher starts Triton again by itself: Kubernetes must not end it meanwhile. A stopped proxy answers nothing.
    assert (await pages(container("server")["livenessProbe"]["httpGet"]["path"])).status == 200
    (endpoint,) = find("PodMonitor", NAMES["server"])["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert (await MetricsPage("/nowhere")(endpoint["path"])).status == 503


def test_gateway_probes_use_existing_endpoints() -> None:
    routes = {getattr(route, "path", "") for route in make_app(GatewayConfig("")).routes}
    asked = {probe["httpGet"]["path"] for probe in probes("gateway")}
    (endpoint,) = find("PodMonitor", NAMES["gateway"])["spec"]["podMetricsEndpoints"]
    assert asked | {endpoint["path"]} <= routes
    assert container("gateway")["livenessProbe"]["httpGet"]["path"] == "/health/live", "or a server's end ends it, too"
    assert {probe["httpGet"]["port"] for probe in probes("gateway")} | {endpoint["port"]} == set(ports("gateway"))


def test_kubernetes_images_and_mounts_match_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container(part)["image"] for part in NAMES} == {f"stretto:{version}"}
    mounts = {each["name"]: each["mountPath"] for each in container("server")["volumeMounts"]}
    assert f"XDG_CACHE_HOME={mounts['cache']}" in dockerfile
    assert mounts["shared-memory"] == "/dev/shm"
    (claim,) = find("StatefulSet", NAMES["server"])["spec"]["volumeClaimTemplates"]
    declared = {each["name"] for each in pod("server")["volumes"]} | {claim["metadata"]["name"]}
    assert set(mounts) == declared
    for part in NAMES:
        assert f"--uid {pod(part)['securityContext']['runAsUser']} stretto" in dockerfile


@pytest.mark.parametrize("part", NAMES)
def test_pods_run_without_privileges(part: str) -> None:
    assert pod(part)["securityContext"]["runAsNonRoot"]
    assert pod(part)["automountServiceAccountToken"] is False
    context = container(part)["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context
    assert context["readOnlyRootFilesystem"]
    assert pod(part)["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    mounts = [each["mountPath"] for each in container(part)["volumeMounts"] if not each.get("readOnly")]
    assert "/tmp" in mounts
    if part == "server":  # the state folder of an installed package, and the cache
        assert {"/home/stretto/.local/state", "/home/stretto/.cache", "/dev/shm"} < set(mounts)


def test_network_policies_restrict_egress_to_servers_and_dns() -> None:
    for name in NAMES.values():
        policy = find("NetworkPolicy", name)["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}
    assert find("NetworkPolicy", NAMES["server"])["spec"]["egress"] == []
    gateway = find("NetworkPolicy", NAMES["gateway"])["spec"]
    assert gateway["ingress"] == [{"ports": [{"port": "gateway"}]}]
    servers, dns = gateway["egress"]
    assert servers["to"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": NAMES["server"]}}}]
    assert [port["port"] for port in servers["ports"]] == ["grpc"]
    assert {port["port"] for port in dns["ports"]} == {53}


def test_kubernetes_references_exist() -> None:
    names = {each["metadata"]["name"] for each in OBJECTS}
    for each in OBJECTS:
        target = each["spec"].get("scaleTargetRef") if "spec" in each else None
        if target:
            assert find(target["kind"], target["name"])["apiVersion"] == target["apiVersion"]
    assert find("StatefulSet", NAMES["server"])["spec"]["serviceName"] in names
    assert set(re.findall(r'"app\.kubernetes\.io/name": "([^"]+)"', STORED)) == {*NAMES.values(), "prometheus"}
    rules = find("NetworkPolicy", NAMES["server"])["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {"grpc", "metrics"} <= set(ports("server"))
