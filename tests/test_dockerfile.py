"""Checks of the container files without a build: pinned versions, no root user, no download at run time."""

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from stretto.launcher.config import parser
from stretto.launcher.installation import OFFLINE

ROOT = Path(__file__).parents[1]
NETWORK_TOOLS = ("pip", "uv", "apt", "apt-get", "curl", "wget", "git")


def instructions() -> list[tuple[str, str]]:
    """Return (keyword, rest) for every instruction, with continuation lines joined and comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


INSTRUCTIONS = instructions()


def every(keyword: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == keyword]


def defaults() -> dict[str, str]:
    """Return the build arguments and their defaults."""
    return dict(rest.split("=", 1) for rest in every("ARG") if "=" in rest)


def copied() -> list[str]:
    """Return the sources in the build context that COPY instructions use."""
    words = [rest.split() for rest in every("COPY") if not rest.startswith("--from")]
    return [word for line in words for word in line[:-1]]


def test_dockerfile_keywords_are_known() -> None:
    known = "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split()
    assert {name for name, _ in INSTRUCTIONS} <= set(known), "ADD is not among them: it fetches and unpacks unseen"


def test_all_images_are_pinned_by_version() -> None:
    bases = [rest.split() for rest in every("FROM")]
    stages = {name for _, *named in bases for name in named[1:]}
    images = [defaults()[image.strip("${}")] for image, *named in bases if named]
    assert [image for image, *named in bases if not named] == ["${TARGET}-base"]
    assert stages == {"gpu-base", "cpu-base"}
    assert defaults()["TARGET"] == "gpu", "compose.yaml builds the default"
    images += [match.group(1) for rest in every("COPY") if (match := re.match(r"--from=(\S+)", rest))]
    assert images
    for image in images:
        _, separator, tag = image.rpartition(":")
        assert separator, f"{image} has no tag"
        assert re.match(r"\d+\.\d+", tag), f"{image} is not pinned by a version"


def test_base_image_matches_the_package() -> None:
    base = defaults()["BASE"]
    assert base.startswith("nvcr.io/nvidia/tritonserver:")
    assert base.endswith("-py3")
    release = tuple(map(int, base.rpartition(":")[2].removesuffix("-py3").split(".")))
    assert release >= (26, 7), "before, a client can end the server or its Python backend (docs/install.md)"
    assert ("COPY", "requirements/gpu.txt /opt/stretto/requirements/packages.txt") in INSTRUCTIONS
    gpu = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    (vllm,) = [requirement for requirement in gpu if requirement.startswith("vllm")]
    assert f"\n{vllm} " in (ROOT / "requirements" / "gpu.txt").read_text(), (
        f"the image installs another vllm than {vllm}"
    )


def test_image_does_not_run_as_root() -> None:
    (user,) = every("USER")
    assert user not in ("root", "0")
    assert any(f"useradd --create-home --uid 10001 {user}" in rest for rest in every("RUN"))
    last_run = max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "RUN")
    assert INSTRUCTIONS.index(("USER", user)) > last_run, "RUN after USER would fail to install"


def test_command_and_health_check_use_exec_form() -> None:
    (command,) = every("CMD")
    arguments = json.loads(command)
    assert arguments[:2] == ["stretto", "serve"]
    assert arguments[-2:] == ["--address", "0.0.0.0"], "or else nobody outside the container reaches it"
    (check,) = every("HEALTHCHECK")
    probe = json.loads(check[check.index("CMD") + 3 :])
    assert probe[-1].endswith("/v2/health/ready")
    assert "8000" in every("EXPOSE")[0].split()
    assert ":8000/" in probe[-1]
    assert int(re.search(r"--start-period=(\d+)s", check).group(1)) >= parser().get_default("start_seconds")
    assert probe[probe.index("--noproxy") + 1] == "*", "Docker may set http_proxy in the container"


def test_server_in_the_image_downloads_nothing() -> None:
    (command,) = every("CMD")
    assert not set(json.loads(command)) & set(NETWORK_TOOLS)
    environment = " ".join(every("ENV"))
    assert "VLLM_NO_USAGE_STATS=1" in environment
    assert "OFFLINE" not in environment, "stretto run downloads"
    assert OFFLINE == {"HF_HUB_OFFLINE": "1"}, "the server does not"


def test_installations_leave_no_caches() -> None:
    for rest in every("RUN"):
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "apt-get update" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        for install in re.findall(r"pip install [^&]*", rest):
            assert "--no-cache" in install
            if not install.rstrip().endswith(" ."):
                assert re.search(r"--require-hashes .*-r requirements/\w+\.txt", install), install


def test_dockerfile_shell_stops_at_the_first_failure() -> None:
    (shell,) = every("SHELL")
    assert json.loads(shell) == ["/bin/bash", "-euo", "pipefail", "-c"]
    assert not any("sudo" in rest for rest in every("RUN"))


@pytest.mark.parametrize("source", copied())
def test_copied_files_exist_and_are_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    paths = [source, *(str(path) for path in Path(source).parents if path.name)]
    ignored = False
    for line in lines:  # the last line that matches wins
        if any(fnmatch.fnmatch(path, line.lstrip("!")) for path in paths):
            ignored = not line.startswith("!")
    assert not ignored


@pytest.mark.parametrize("path", [".git", ".venv", ".stretto", "tests", "speech.wav"])
def test_unneeded_files_stay_out_of_the_docker_build(path: str) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert f"!{path}" not in lines


def test_compose_file_runs_the_image_with_a_gpu_unprivileged() -> None:
    text = (ROOT / "compose.yaml").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"image: stretto:{version}" in text
    assert "capabilities: [gpu]" in text
    assert "no-new-privileges:true" in text
    assert "privileged: true" not in text
    assert "ipc: host" in text
    assert "shm_size" not in text, "which means nothing beside the host's memory"
    for port in every("EXPOSE")[0].split():
        assert f'"127.0.0.1:{port}:{port}"' in text
    assert int(re.search(r"stop_grace_period: (\d+)s", text).group(1)) > 30, "longer than the launcher drains"


def test_compiled_kernels_survive_the_container() -> None:
    (cache,) = re.findall(r"- cache:(\S+)", (ROOT / "compose.yaml").read_text())
    environment = dict(word.split("=") for rest in every("ENV") for word in rest.split())
    for name in ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(environment[name]).is_relative_to(cache)
    assert any(f"install --directory --owner=stretto --group=stretto {cache}" in rest for rest in every("RUN"))


def test_mps_is_enabled_by_a_separate_compose_file() -> None:
    text = (ROOT / "compose.mps.yaml").read_text()
    assert "CUDA_MPS_PIPE_DIRECTORY" in text
    assert "CUDA_MPS" not in (ROOT / "compose.yaml").read_text()
