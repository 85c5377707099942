"""Program that installs the Helm chart into a scripted Kubernetes API, and prints the objects as JSON.

It runs in an environment of its own, with the real Helm (helm-sdkpy), which needs Python 3.12. Arguments: the chart's
folder, the release's name, its namespace, and the values as JSON. If Helm refuses them, its error is printed instead.
"""

import asyncio
import json
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

KINDS = {
    "v1": ["Service", "Secret", "Namespace"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "monitoring.coreos.com/v1": ["PodMonitor"],
    "keda.sh/v1alpha1": ["ScaledObject"],
}
VERSION = {"major": "1", "minor": "31", "gitVersion": "v1.31.0"}
objects: list[dict[str, Any]] = []


def plural(kind: str) -> str:
    """Return the name of a kind in addresses."""
    return "networkpolicies" if kind == "NetworkPolicy" else f"{kind.lower()}s"


def discovery(path: str) -> dict[str, Any] | None:
    """Return the response of the API's discovery for an address; None for an object's address."""
    if path == "/version":
        return VERSION
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [version.split("/") for version in KINDS if "/" in version]
        versions = {group: {"groupVersion": f"{group}/{version}", "version": version} for group, version in groups}
        listed = [{"name": group, "versions": [each], "preferredVersion": each} for group, each in versions.items()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in KINDS:
        return None
    resources = [
        {"name": plural(kind), "kind": kind, "namespaced": True, "verbs": ["create", "get"]} for kind in KINDS[version]
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


class Api(BaseHTTPRequestHandler):
    """The scripted API: it has no objects, and accepts each new one."""

    def do_GET(self) -> None:
        """Answer discovery, and that an object does not exist."""
        found = discovery(self.path.partition("?")[0])
        if found is None and self.path.partition("?")[0].endswith("/secrets"):
            found = {"kind": "SecretList", "apiVersion": "v1", "items": []}
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self.answer(200 if found else 404, json.dumps(found or missing).encode())

    def do_POST(self) -> None:
        """Accept an object."""
        body, kind = self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"]
        if kind.startswith("application/json"):  # Helm sends its own record of the release as protobuf
            objects.append(json.loads(body))
        self.answer(201, body, kind)

    do_PUT = do_PATCH = do_POST

    def answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Send a response."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


async def install(chart: str, name: str, namespace: str, values: dict[str, Any], port: int) -> None:
    """Lint and install the chart.

    Args:
        chart: Folder of the chart.
        name: Name of the release.
        namespace: Its namespace.
        values: Values that differ from the defaults.
        port: Port of the scripted API.
    """
    import helm_sdkpy

    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    config |= {"users": [{"name": "u", "user": {}}], "current-context": "x"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config"
        path.write_text(json.dumps(config))
        with helm_sdkpy.Configuration(namespace=namespace, kubeconfig=str(path)) as opened:
            await helm_sdkpy.Install(opened).run(name, chart, values=values, wait=False)


def main() -> None:
    """Print the objects of the chart, or Helm's error."""
    chart, name, namespace, values = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        asyncio.run(install(chart, name, namespace, json.loads(values), server.server_port))
    except Exception as error:
        print(json.dumps(str(error)))
    else:
        print(json.dumps(objects))


if __name__ == "__main__":
    main()
