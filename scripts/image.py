"""Build the image with buildah, and run it, on a machine without Docker, a GPU or a container registry.

    . scripts/uv_sources.sh
    python -m scripts.image cpu gpu

Needs root, a Debian with Python 3.11 or 3.12, its packages buildah, crun, debootstrap and iproute2, and 30 GB in the
temporary folder. The base is this machine's distribution, made by debootstrap, with this machine's certificates and
settings of pip. The CPU image serves, run as Docker would run it: as its user without capabilities, with a read-only
root and networks of its own. The GPU image lacks Triton's server, which only its published base has: its packages are
imported, and its command ends because the server is missing.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stretto.launcher.installation import CONTAINER_SERVER

ROOT = Path(__file__).parents[1]
TOOLS = ("buildah", "crun", "debootstrap", "ip")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# As the image is run: writable places, all else is read-only.
WRITABLE = ("/tmp", "/home/stretto/.cache", "/home/stretto/.local/state")
START_S = 600.0  # what the launcher allows for a start
STOP_S = int(re.findall(r"stop_grace_period: (\d+)s", (ROOT / "compose.yaml").read_text())[0])
SENTENCE = "It is twenty past nine and the garden door is open."
# WORKAROUND(crun): it refuses to start where cgroups of both versions are mounted, even if it uses none.
CRUN = ("unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun "$@"', "crun")
NETWORKS = tuple(f"stretto-{os.getpid()}-{end}" for end in ("server", "client"))  # a killed run leaves its own
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # for documentation: no machine has them


def output(*command: str | Path) -> str:
    """Run a command and return its output."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def machine_mirror() -> tuple[str, str]:
    """Return the suite and the mirror from which this machine installs its packages."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    suite = release["VERSION_CODENAME"]
    targets = output("apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)").splitlines()
    mirrors = [line.split()[1] for line in targets if line.split()[0] == suite]
    if not mirrors:
        raise LookupError(f"apt has no source for {suite}")
    return suite, mirrors[0]


class Images:
    """Images in a folder of their own. `links` is a folder of wheels that this machine's pip prefers, or None."""

    def __init__(self, folder: Path, links: Path | None) -> None:
        self.folder = folder
        self._links = links

    def buildah(self, *command: str | Path) -> str:
        return output("buildah", *self._store(), *command)

    def _store(self) -> tuple[str | Path, ...]:
        return ("--root", self.folder / "images", "--runroot", self.folder / "run")

    @contextmanager
    def container(self, image: str) -> Iterator[tuple[str, Path]]:
        """Yield a container of an image and the folder of its files."""
        name = self.buildah("from", "--pull-never", image)
        try:
            yield name, Path(self.buildah("mount", name))
        finally:
            self.buildah("rm", name)

    def make_base(self) -> None:
        """Make the image `base` of this machine's distribution."""
        suite, mirror = machine_mirror()
        with self.container("scratch") as (name, files):
            command = ("debootstrap", "--variant=minbase", "--include=ca-certificates", suite, files, mirror)
            subprocess.run(command, stdout=sys.stderr, check=True)
            shutil.copy(CERTIFICATES, files / CERTIFICATES.relative_to("/"))
            settings = {files / "root/.config/pip/pip.conf": f"[global]\ncert = {CERTIFICATES}\n"}
            if self._links is not None:
                settings[files / "root/.config/pip/pip.conf"] += f"find-links = {self._links}\n"
            settings[files / "etc/uv/uv.toml"] = "system-certs = true\n"
            for path, text in settings.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            self.buildah("commit", "--quiet", name, "localhost/base:1.0")

    def build(self, target: str) -> None:
        """Build a target of the Dockerfile over the image `base`."""
        command = ["build", "--format", "docker", "--isolation", "chroot", "--network", "host", "--pull-never"]
        for name in ("BASE", "CPU_BASE"):
            command += ["--build-arg", f"{name}=localhost/base:1.0"]
        if self._links is not None:
            command += ["--volume", f"{self._links}:{self._links}:ro"]
        # Two copies of the new layer, which buildah makes for a while, are half as large if they are compressed.
        command += ["--build-arg", f"TARGET={target}", "--disable-compression=false", "--tag", target, str(ROOT)]
        subprocess.run(("buildah", *self._store(), *command), stdout=sys.stderr, check=True)

    def run(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as the image's user."""
        buildah = ("buildah", *self._store(), "run", "--isolation", "chroot", container, "--")
        return subprocess.run((*buildah, *command), capture_output=True, text=True, check=False)

    def config(self, image: str) -> dict[str, Any]:
        """Return the image's configuration in Docker's format."""
        return json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]["config"]

    def size_mb(self, image: str) -> int:
        """Return the size of an image's files in MB."""
        with self.container(image) as (_, files):
            return int(output("du", "--summarize", "--one-file-system", "--block-size=1MB", files).split()[0])


@contextmanager
def networks() -> Iterator[None]:
    """Connect two networks, one for the server and one for a client, with no other hosts."""
    created: list[str] = []
    try:
        for name in NETWORKS:
            output("ip", "netns", "add", name)
            created.append(name)
        one, other = NETWORKS
        output(*f"ip -n {one} link add eth0 type veth peer name eth0 netns {other}".split())
        for name, address in zip(NETWORKS, ADDRESSES, strict=True):
            output(*f"ip -n {name} address add {address}/30 dev eth0".split())
            for device in ("lo", "eth0"):
                output(*f"ip -n {name} link set {device} up".split())
        yield
    finally:
        for name in created:
            output("ip", "netns", "delete", name)


def runtime_config(image: dict[str, Any], files: Path, scratch: Path) -> dict[str, Any]:
    """Return crun's configuration for an image: its user, no capabilities, a read-only root, writes to `scratch`."""
    users = dict(re.findall(r"^([^:]+):[^:]*:(\d+:\d+):", (files / "etc/passwd").read_text(), re.MULTILINE))
    uid, gid = map(int, users[image["User"]].split(":"))
    output(*CRUN, "spec", "--bundle", scratch)
    config = json.loads((scratch / "config.json").read_text())
    config["root"] = {"path": str(files), "readonly": True}
    process = config["process"]
    process |= {"terminal": False, "user": {"uid": uid, "gid": gid}, "noNewPrivileges": True, "args": image["Cmd"]}
    process |= {"env": [*image["Env"], "HOME=/home/stretto"], "cwd": image["WorkingDir"], "capabilities": {}}
    for mount in config["mounts"]:
        if mount["destination"] == "/dev/shm":
            mount["options"] = ["nosuid", "noexec", "nodev", "mode=1777", "size=2g"]
    for path in WRITABLE:
        folder = scratch / path.strip("/")
        folder.mkdir(parents=True)
        os.chown(folder, uid, gid)
        config["mounts"].append({"destination": path, "type": "bind", "source": str(folder), "options": ["bind", "rw"]})
    for namespace in config["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = f"/run/netns/{NETWORKS[0]}"
    return config


class Server:
    """Container that runs an image's command. `scratch` is an empty folder."""

    def __init__(self, image: dict[str, Any], files: Path, scratch: Path) -> None:
        config = runtime_config(image, files, scratch)
        (scratch / "config.json").write_text(json.dumps(config))
        self._user = "{uid}:{gid}".format(**config["process"]["user"])
        self._check = image["Healthcheck"]["Test"]
        self.log = scratch / "log"
        command = (*CRUN, "--cgroup-manager=disabled", "run", "--bundle", scratch, NETWORKS[0])
        self._process = subprocess.Popen(command, stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as the image's user."""
        crun = (*CRUN, "exec", "--user", self._user, NETWORKS[0])
        return subprocess.run((*crun, *command), capture_output=True, text=True, check=False)

    def is_healthy(self) -> bool:
        """Return the result of the image's health check; raise RuntimeError if the server has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{self.log.read_text()[-5000:]}")
        form, *command = self._check
        return self.run(*(command if form == "CMD" else ("sh", "-c", *command))).returncode == 0

    def stop(self) -> int:
        """Stop the server as Docker does; return its exit status, or -9 if it was killed after the grace period."""
        subprocess.run((*CRUN, "kill", NETWORKS[0], "TERM"), check=False)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Kill the server if it still runs; return -9."""
        subprocess.run((*CRUN, "delete", "--force", NETWORKS[0]), stderr=subprocess.DEVNULL, check=False)
        self._process.wait()
        return -9


def from_outside(command: str, *arguments: str | Path) -> str:
    """Run a command of this machine's `stretto` in the client's network, and return its output."""
    stretto = Path(sys.executable).with_name("stretto")
    server = ("--server", f"{ADDRESSES[0]}:8001")
    return output("ip", "netns", "exec", NETWORKS[1], stretto, command, *arguments, *server, "--seed", "1")


def serve(images: Images, image: str, scratch: Path) -> None:
    """Serve with an image, and print the durations of start, speech and stop.

    Raises:
        RuntimeError: The server does not become healthy, can write or is root, speaks wrongly, or does not stop.
    """
    with images.container(image) as (_, files), networks():
        begun = time.monotonic()
        server = Server(images.config(image), files, scratch)
        try:
            while not server.is_healthy():
                if time.monotonic() - begun > START_S:
                    raise RuntimeError(f"not healthy after {START_S:.0f} s:\n{server.log.read_text()[-5000:]}")
                time.sleep(1)
            print(f"{image}: healthy after {time.monotonic() - begun:.0f} s", flush=True)
            if (uid := server.run("stat", "--format=%u", "/proc/1").stdout.strip()) in ("", "0"):
                raise RuntimeError(f"the server runs as user {uid or 'unknown'}")
            if "Read-only" not in (answer := server.run("touch", "/opt/stretto/new").stderr):
                raise RuntimeError(f"the root is writable: {answer!r}")
            begun = time.monotonic()
            speech = scratch / "speech.wav"
            from_outside("speak", SENTENCE, "--out", speech)
            transcript = from_outside("transcribe", speech)
            if "garden" not in transcript:
                raise RuntimeError(f"the speech was recognised as: {transcript}")
            print(f"{image}: user {uid} spoke and recognised it in {time.monotonic() - begun:.0f} s", flush=True)
            run_published(server, image, scratch)
            begun = time.monotonic()
            if status := server.stop():
                raise RuntimeError(f"exit status {status} after {time.monotonic() - begun:.0f} s of {STOP_S} s to stop")
            print(f"{image}: stopped after {time.monotonic() - begun:.0f} s", flush=True)
        finally:
            server.kill()


# Serves the release in a folder as acme/voice, and prints the address. In the server's network, as the hub would be.
HUB = """
import sys, time
from pathlib import Path
from plugins.pocket.lab.random_pocket import write_release
from tests.hub import Hub
with Hub() as hub:
    hub.add("acme/voice", write_release(Path(sys.argv[1])), card={"license": "mit"})
    print(hub.url, flush=True)
    time.sleep(3600)
"""


def run_published(server: Server, image: str, scratch: Path) -> None:
    """Install a small random release from a hub in the container, and speak with it, twice.

    Raises:
        RuntimeError: A command fails, writes no speech, or the second one needs the hub.
    """
    network = ("ip", "netns", "exec", NETWORKS[0])
    command = (*network, sys.executable, "-c", HUB, scratch / "release")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        url = hub.stdout.readline().strip()
        try:
            speak_published(server, image, scratch, url, "installed acme/voice and spoke")
        finally:
            hub.kill()
    speak_published(server, image, scratch, url, "spoke again, without the hub,")


def speak_published(server: Server, image: str, scratch: Path, url: str, said: str) -> None:
    """Speak in the container with the model acme/voice of a hub, and print the time that it takes."""
    begun = time.monotonic()
    words = ("stretto", "run", "acme/voice", "It is ten.", "--port", "9000", "--out", "/tmp/voice.wav")
    done = server.run("env", f"HF_ENDPOINT={url}", *words)
    if done.returncode or not (scratch / "tmp/voice.wav").stat().st_size:
        raise RuntimeError(f"{' '.join(words)}: exit status {done.returncode}: {done.stderr[-2000:]}")
    print(f"{image}: {said} in {time.monotonic() - begun:.0f} s", flush=True)


VERSIONS = "import stretto, torch, vllm; print(f'torch=={torch.__version__} vllm=={vllm.__version__}')"


def check_without_triton(images: Images, image: str) -> None:
    """Import torch and vLLM in an image, and check that its command ends because Triton's server is missing.

    Raises:
        RuntimeError: The versions are not those of requirements/gpu.txt, or the command ends for another reason.
    """
    pinned = re.findall(r"^(?:torch|vllm)==\S+", (ROOT / "requirements/gpu.txt").read_text(), re.MULTILINE)
    with images.container(image) as (name, _):
        imported = images.run(name, "python", "-c", VERSIONS)
        served = images.run(name, *images.config(image)["Cmd"])
    versions = imported.stdout.strip()
    if len(pinned) != 2 or not all(requirement in versions for requirement in pinned):
        raise RuntimeError(f"expected {' '.join(pinned)}, got {versions}: {imported.stderr[-2000:]}")
    if served.returncode != 1 or f"no Triton server: neither {CONTAINER_SERVER}" not in served.stderr:
        raise RuntimeError(f"exit status {served.returncode}: {served.stderr[-2000:]}")
    print(f"{image}: imports {versions}; its command ends: {served.stderr.splitlines()[0]}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build and run the targets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=("cpu", "gpu"))
    parsed = parser.parse_args(arguments)
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        sys.exit(f"image: not found: {', '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("image: terminated"))  # remove what was made
    links = os.environ.get("UV_FIND_LINKS", "")
    with tempfile.TemporaryDirectory(prefix="stretto-image-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        images = Images(folder, Path(links) if os.path.isabs(links) and Path(links).is_dir() else None)
        images.make_base()
        for target in parsed.targets:
            begun = time.monotonic()
            images.build(target)
            print(f"{target}: built in {time.monotonic() - begun:.0f} s, {images.size_mb(target)} MB", flush=True)
            if target == "cpu":
                scratch = folder / "server"
                scratch.mkdir()
                serve(images, target, scratch)
            else:
                check_without_triton(images, target)
            images.buildah("rmi", target)


if __name__ == "__main__":
    main()
