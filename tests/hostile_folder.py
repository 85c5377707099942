"""Folder of modules with the names of all others, each of which leaves its name in a file when it is executed."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

RAN = "ran"  # file in the folder
MODULE = """import os
with open({ran!r}, "a") as file:
    file.write(f"{name} in {{os.getpid()}}: {{open('/proc/self/cmdline').read()}}\\n")
raise SystemExit("the module {name} of the current folder was executed")
"""
# Imported by Python itself at its start, by Triton's stubs, or only if they exist.
OTHERS = {"sitecustomize", "usercustomize", "triton_python_backend_utils", "triton_kernels", "flash_attn", "model"}
GROUPS = ("stretto.families", "stretto.codecs", "stretto.markers", "vllm.general_plugins", "triton.backends")


def write_module(folder: Path, name: str) -> None:
    """Write a module, and with some names also a package, which comes before a module."""
    text = MODULE.format(name=name, ran=str(folder / RAN))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    if len(name) % 2:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(text)


def write_hostile_folder(folder: Path) -> Path:
    """Write a module for every name of the standard library and of the installed packages, and return the folder."""
    installed = {name for name in packages_distributions() if name.isidentifier()}
    for name in sys.stdlib_module_names | installed | OTHERS | {"hostile_plugin"}:
        write_module(folder, name)
    (folder / "hostile.pth").write_text("import hostile_plugin\n")
    distribution = folder / "hostile-1.0.dist-info"
    distribution.mkdir(exist_ok=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    entries = (f"[{group}]\nhostile = hostile_plugin:PLUGIN\n" for group in GROUPS)
    (distribution / "entry_points.txt").write_text("\n".join(entries))
    for library in (f"libpython3.{sys.version_info.minor}.so.1.0", "libc.so.6", "libstdc++.so.6"):
        (folder / library).write_text("not a library")
    return folder


def executed(folder: Path) -> str:
    """Return the modules of the folder that were executed, with their processes."""
    ran = folder / RAN
    return ran.read_text() if ran.exists() else ""


def without_current_folder(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which the dynamic loader searches no current folder.

    If cv2 is imported, it appends an empty folder to the search path of libraries, so the loader would find the hostile
    libraries of the current folder before any code of ours runs.
    """
    folders = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return {**environment, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}
