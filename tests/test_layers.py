"""Architecture rules as tests: permitted imports, maximum sizes, and banned names."""

import ast
import dataclasses
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from setup import PLUGINS, entry_points
from stretto.entry_points import FAMILIES, installed
from stretto.family.plugin import FamilyPlugin
from stretto.streams import layout
from tests.sources import parsed, statements, walk

pytestmark = pytest.mark.together("sources")  # one process parses them
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python_backend" / "stretto"
PLUGIN_PACKAGES = {name: ROOT / folder / name for name, folder in PLUGINS.items()}
NAME, CLIENT, GATEWAY = "stretto", "stretto_client", "stretto_gateway"

# What each package may import of ours, beside itself: a folder, a folder in the engine, or a module of its own. Lower
# packages come first, so that no import runs up. Each folder in `families`, and that of each family in `plugins/`, is a
# plug-in, found by name: see PLUGIN.
ALLOWED = {
    "errors": set(),
    "disconnects": set(),
    "hops": set(),
    "config": {"errors"},
    "untrusted_files": {"errors"},
    "entry_points": {"errors"},
    "streams": set(),
    "marking": {"entry_points"},
    "records": {"streams", "errors"},
    "weights": {"untrusted_files", "errors"},
    "codecs": {"weights", "entry_points", "untrusted_files", "errors"},
    "encoders": {"codecs", "weights", "untrusted_files", "errors"},
    "families": set(),
    "family": {"codecs", "weights", "records", "streams", "entry_points", "untrusted_files", "errors"},
    "machine": {"family", "errors"},
    "aligning": {"weights", "untrusted_files", "machine", "errors"},
    "preprocessing": {"family", "codecs", "records", "streams", "machine", "errors"},
    "verification": {"preprocessing", "weights", "errors"},
    "decoding": {"codecs", "config", "machine", "errors"},
    "decoder": {
        "decoding", "aligning", "family", "codecs", "records", "streams", "config", "machine", "marking", "errors",
        "hops",
    },
    "cpu_backend": set(),
    "engine/columns": {"records"},
    "engine/rules": {"engine/columns"},
    "engine/sampling": set(),
    "engine/kernels": {"engine/columns", "engine/rules", "engine/sampling", "errors"},
    "engine": {
        "cpu_backend", "engine/rules", "engine/kernels", "family", "records", "streams", "config",
        "machine", "errors", "untrusted_files", "hops",
    },
    "engine/scheduling": {
        "engine", "engine/rules", "family", "records", "streams", "machine", "errors", "hops",
    },
    "engine/worker": {
        "engine", "cpu_backend", "engine/columns", "engine/rules", "engine/kernels", "family", "engine/sampling",
        "decoding", "codecs", "records", "streams", "machine", "errors",
    },
    "engine/models": {"engine/worker", "engine", "cpu_backend", "engine/kernels", "family", "errors"},
    "triton_io": {"family", "records", "streams", "config", "disconnects", "errors", "hops"},
    "proxy": {"disconnects", "errors", "hops"},
    "launcher": {
        "triton_io", "proxy", "disconnects", "entry_points", "machine", "errors",
        "untrusted_files",
    },
    "convert": {
        "launcher", "preprocessing", "decoder", "decoding", "family", "codecs", "aligning", "weights", "config",
        "machine", "untrusted_files", "errors",
    },
    "releases": {
        "convert", "engine", "launcher", "family", "codecs", "config", "entry_points", "machine", "weights",
        "records", "untrusted_files", "errors",
    },
    "testing": {
        "convert", "preprocessing", "engine", "family", "decoder", "codecs", "weights", "records", "streams", "config",
        "entry_points", "errors",
    },
    "__init__": {"engine"},
    "cli": {"convert", "launcher", "machine", "entry_points", "releases", "verification"},
    "__main__": {"cli"},
    "families/*": {
        "engine/models", "engine/worker", "engine/scheduling", "engine/kernels", "engine/rules", "engine", "family",
        "encoders", "codecs", "weights", "engine/sampling", "records", "streams", "config", "untrusted_files",
        "errors", "testing",
    },
}  # fmt: skip
# Routes of the gateway, each a folder or a file. None builds on another one; those of plug-ins may use any.
ROUTES = {"jobs", "realtime", "speech_stream"}
PLUGIN = "families/*"
# What each file of a plug-in may import. Most processes import a plug-in without the engine, torch or vLLM.
ROLES = {
    "mechanism/*reference.py": {"testing", "family", "records"},
    "mechanism*.py": {
        "engine/worker", "engine/scheduling", "engine/kernels", "engine/rules", "engine/sampling", "engine", "family",
        "records", "streams", "config", "errors",
    },
    "__init__.py": {"family", "codecs"},
    "family.py": {"family", "records", "streams", "errors"},
    "model.py": {"family", "engine/models", "codecs"},  # networks that model and codec share
    "recognise.py": {"family", "untrusted_files"},
    "convert*.py": {"family", "encoders", "codecs", "weights", "untrusted_files", "errors"},
    "*.py": {"family", "encoders", "codecs", "weights", "records", "streams", "untrusted_files", "errors"},
}  # fmt: skip
# Libraries that only some packages may import; "families/*/model.py" is that file of a plug-in.
LIBRARIES = {
    "vllm": {
        "engine", "cpu_backend", "testing",
        *(f"families/*/{name}.py" for name in ("model", "mechanism", "memory", "module_rows", "prompt_states")),
    },
    "triton_python_backend_utils": {"triton_io"},
    "transformers": {
        "weights", "codecs", "encoders", "aligning", "family", "families/*", "engine", "convert", "testing",
    },
    "torch": {
        "machine", "engine/sampling", "weights", "codecs", "encoders", "family", "families/*", "engine",
        "cpu_backend", "decoder", "decoding", "triton_io", "convert", "testing", "aligning", "verification",
    },
}  # fmt: skip
# Outer bounds against accidents, not a style: what is always read together belongs in one file.
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80
MAX_CLASS_LINES = 310  # with base classes
MAX_CONSTRUCTOR_ARGUMENTS = 8
MAX_ADAPTER_LINES = 80
BANNED_NAMES = {"cfg", "utils", "helpers", "common", "misc", "shadow", "n_q", "card"}
ORDINARY = {"tiny"}  # names of families and codecs that are words, too: found between quotes only
SPELLED = {"xcodec": "x_codec"}  # as words
BANNED_WORD = re.compile(rf"\b(?:{'|'.join(BANNED_NAMES)})\b")

OWN_FOLDERS = ("scripts", "benchmarks", "lab", "training", "plugins")  # of this repository; no package imports them
INSTALLED = ("python_backend", "contract", "client", "gateway", "model_repository")
SOURCES = sorted(
    path
    for folder in (*OWN_FOLDERS, *INSTALLED, "deploy")
    for path in (ROOT / folder).rglob("*.py")
    if not {"tests", "conftest.py"} & {*path.relative_to(ROOT).parts}
)


ROUTE_MODULES = {point.partition(":")[0] for point in entry_points()[f"{GATEWAY}.routes"].values()}


@cache
def plugin_package(path: Path) -> str | None:
    """Return the name of the plug-in's package that a file belongs to, or None."""
    return next((name for name, folder in PLUGIN_PACKAGES.items() if path.is_relative_to(folder)), None)


OURS = [path for path in SOURCES if path.is_relative_to(PACKAGE) or plugin_package(path)]
ADAPTERS = [path for path in SOURCES if path.is_relative_to(ROOT / "model_repository")]


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def package_of(names: Sequence[str]) -> str:
    """Return the package of a module's path inside `stretto`: its folder, a folder in the engine, or a plug-in."""
    if len(names) > 1 and (nested := "/".join(names[:2])) in ALLOWED:
        return nested
    if names[0] == "families" and len(names) > 1 and (PACKAGE / "families" / names[1]).is_dir():
        return f"families/{names[1]}"
    return names[0]


@cache
def package_in(module: str) -> str | None:
    """Return the package of one of our modules: one in `stretto`, or the folder of a family in a plug-in; else None."""
    name, *names = module.split(".")
    if name == NAME:
        return package_of(names or ["__init__"])
    if name not in PLUGIN_PACKAGES:
        return None
    has_own_folder = names and (PLUGIN_PACKAGES[name] / names[0] / "family.py").is_file()
    return f"{name}/{names[0]}" if has_own_folder else name


@cache
def imported_packages(path: Path) -> set[str]:
    """Return our own packages that a file imports."""
    modules = set[str]()
    for node in statements(path):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {package for module in modules if (package := package_in(module)) is not None}


@cache
def own_package(path: Path) -> str:
    package = package_in(module_name(path))
    assert package is not None, path
    return package


@cache
def is_plugin(package: str) -> bool:
    """Return True for the package of a family, whether built in or in `plugins/`."""
    return package.split("/")[0] in PLUGIN_PACKAGES or (package not in ALLOWED and package.startswith("families/"))


def line_of(package: str) -> str:
    """Return the line of the import table for a package."""
    return PLUGIN if is_plugin(package) else package


def identity(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def is_route(path: Path) -> bool:
    """Return True for a file of a folder that a plug-in adds to the gateway."""
    return plugin_package(path) is not None and module_name(path.parent / "route.py") in ROUTE_MODULES


@cache
def module_name(path: Path) -> str:
    """Return the name under which `path` is imported."""
    folders = ("python_backend", "contract", "client", "gateway", "deploy/ray", *PLUGINS.values(), "")
    root = next(ROOT / folder for folder in folders if path.is_relative_to(ROOT / folder))
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Mapping[str, Path]) -> set[str]:
    """Return the `known` modules that a file imports anywhere, including imports only for type checkers."""
    found: set[str] = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known.keys() or {node.module or ""}
    return found & known.keys()


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return an import cycle with its first module repeated at the end, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def folder_of(package: str) -> Path:
    """Return the folder of a family's package."""
    name, _, inner = package.partition("/")
    return PLUGIN_PACKAGES[name] / inner if name in PLUGIN_PACKAGES else PACKAGE / package


def upward_imports(path: Path) -> list[str]:
    """Return one line for each import of `path` that the tables above do not allow."""
    package = own_package(path)
    line, root, used = line_of(package), package.split("/")[0], {module.split(".")[0] for module in imports(path)}
    inside = path.relative_to(folder_of(package)).as_posix() if is_plugin(package) else ""
    allowed = next((ROLES[role] for role in ROLES if fnmatch(inside, role)), ALLOWED[line])
    owners = {PLUGIN, f"{PLUGIN}/{path.name}"} if is_plugin(package) else {root}
    return [
        f"{identity(path)} imports {found}"
        for found in sorted(imported_packages(path) - {package})
        if found not in allowed and not (is_plugin(package) and found.split("/")[0] in {root, "families"})
    ] + [
        f"{identity(path)} imports {library}, which is for {sorted(allowed_for)}"
        for library, allowed_for in LIBRARIES.items()
        if library in used and not owners & allowed_for
    ]


def test_imports_follow_the_layer_table() -> None:
    violations = [line for path in OURS for line in upward_imports(path)]
    assert not violations, "\n".join(violations)


def test_layer_table_is_ordered_and_has_only_existing_packages() -> None:
    lower = set[str]()
    for package, allowed in ALLOWED.items():
        assert allowed <= lower, f"{package}: {sorted(allowed - lower)} not below it"
        lower.add(package)
    assert {line_of(own_package(path)) for path in OURS} == ALLOWED.keys()


def test_packages_have_no_import_cycles() -> None:
    """Each plug-in is a package. Only other plug-ins import it, and they form no cycle."""
    graph: dict[str, set[str]] = {}
    for path in OURS:
        graph.setdefault(own_package(path), set()).update(imported_packages(path) - {own_package(path)})
    assert not find_circle(graph)
    plugins = {package for package in graph if line_of(package) == PLUGIN}
    assert len(plugins) > 5
    assert not {user: used & plugins for user, used in graph.items() if used & plugins and user not in plugins}


def test_modules_have_no_import_cycles() -> None:
    known = {module_name(path): path for path in SOURCES if not path.is_relative_to(ROOT / "model_repository")}
    assert not find_circle({name: imported_modules(path, known) for name, path in known.items()})


def test_import_cycle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def forbidden_roots(path: Path) -> set[str]:
    """Return the top-level packages that a file may not import, depending on the program that it belongs to."""
    forbidden = {"tests"}
    if path.is_relative_to(ROOT / "contract"):
        forbidden |= {NAME, CLIENT, GATEWAY, *OWN_FOLDERS}
    elif path.is_relative_to(ROOT / "client"):
        forbidden |= {NAME, GATEWAY, *OWN_FOLDERS}
    elif path.is_relative_to(ROOT / "gateway"):
        forbidden |= {NAME, *OWN_FOLDERS}  # the gateway reaches the server through the client
    elif path.is_relative_to(ROOT / "deploy"):
        forbidden |= {NAME}
    elif path in OURS:
        forbidden |= (
            {*OWN_FOLDERS}
            | (PLUGIN_PACKAGES.keys() - {plugin_package(path)})
            | ({CLIENT, GATEWAY} if path.name != "cli.py" and not is_route(path) else set())
        )
    return forbidden


def test_clients_and_adapters_respect_import_boundaries() -> None:
    violations = []
    for path in SOURCES:
        used = {module.split(".")[0] for module in imports(path)} & forbidden_roots(path)
        violations += [f"{identity(path)} imports {root}" for root in sorted(used)]
    for path in ADAPTERS:
        driven = {package.split("/")[0] for package in imported_packages(path)}
        driven -= {"triton_io", "config", "errors", "records", "family", "codecs"}
        if len(driven) > 1:
            violations.append(f"{identity(path)} drives more than one package: {sorted(driven)}")
    assert not violations, "\n".join(violations)


def room_of(module: str) -> str:
    """Return the folder or the file of the gateway that has a module."""
    return module.removeprefix(f"{GATEWAY}.").split(".")[0]


def test_gateway_imports_no_route() -> None:
    """Its routes are found by name, and none imports another one."""
    own = {module for module in ROUTE_MODULES if module.startswith(f"{GATEWAY}.")}
    assert {room_of(module) for module in own} == ROUTES
    modules = {module_name(path): path for path in SOURCES if path.is_relative_to(ROOT / "gateway")}
    violations = [
        f"{name} imports {imported}"
        for name, path in modules.items()
        for imported in imported_modules(path, modules)
        if room_of(imported) in ROUTES - {room_of(name)}
    ]
    assert not violations, "\n".join(violations)


def test_converters_are_imported_only_by_name() -> None:
    converters = {module_name(path): path for path in OURS if path.stem.startswith("convert")}
    assert converters
    users = [path for path in OURS if imported_modules(path, converters) and path not in converters.values()]
    assert not users


def name_pattern(name: str) -> str:
    """Return a regular expression for the spellings of a registered name, in code and in prose."""
    if name in ORDINARY:
        return rf"[\"'`]{name}[\"'`]"
    words = re.findall(r"[a-z]+|\d+", SPELLED.get(name, re.sub(r"_v\d+$", "", name)))
    return rf"\b{'[ _-]?'.join(words)}\b"


def test_core_does_not_mention_families_or_codecs() -> None:
    """Families and codecs are plug-ins. Shared codecs and encoders may name built-in ones; the rest names none."""
    own = [path for path in OURS if line_of(own_package(path)) != PLUGIN]
    groups = entry_points()
    points = {**groups["stretto.families"], **groups["stretto.codecs"]}
    assert {"bagpiper", "opuslm_dialogue", "qwen3_tts", "tiny", "mimi", "glm4_voice", "s3gen"} <= points.keys()
    of_plugins = {name for name, value in points.items() if not value.startswith(f"{NAME}.")}
    start = "[\"'`" + "".join({name[0] for name in points}) + "]"  # at other characters, the search goes on at once
    patterns = {
        is_shared: re.compile(f"(?={start})(?:{'|'.join(map(name_pattern, sorted(names)))})", re.IGNORECASE)
        for is_shared, names in ((False, points.keys()), (True, of_plugins))
    }
    violations = [
        f"{identity(path)}:{number}: {found[0]}"
        for path in own
        for pattern in [patterns[line_of(own_package(path)) in ("codecs", "encoders")]]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := pattern.search(line))
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    "line", ["# X-codec has", "opuslm", "Qwen3-TTS's", "of Sample Voice v2", 'codec: str = "tiny"']
)
def test_family_and_codec_names_are_found_in_code_and_prose(line: str) -> None:
    names = ("xcodec", "opuslm", "qwen3_tts", "sample_voice_v2", "tiny")
    assert re.search("|".join(map(name_pattern, names)), line, re.IGNORECASE)
    assert not re.search(name_pattern("tiny"), "a tiny step")


def fields_of_family_data() -> dict[str, list[str]]:
    """Return the fields of each dataclass that describes a family, keyed by its name."""
    return {
        node.name: [
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        ]
        for path in (
            PACKAGE / "family" / "base.py",
            PACKAGE / "family" / "input_tracks.py",
            PACKAGE / "streams" / "layout.py",
        )
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list)
    }


def users_of_family_data() -> dict[str, set[str]]:
    """Return the folders of the families that set each class or field: in a call, by default, or by an instance."""
    fields, users = fields_of_family_data(), defaultdict[str, set[str]](set)
    for path in (path for path in OURS if line_of(own_package(path)) == PLUGIN):
        folder = own_package(path).removeprefix("families/")
        for node in walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module == layout.__name__:  # of instances, such as a tail
                for alias in node.names:
                    users[type(getattr(layout, alias.name)).__name__].add(folder)
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            name, given = node.func.id, {each.arg for each in node.keywords}
            if name in fields:
                given |= {*fields[name][: len(node.args)]}
            elif name == "replace" and path.name == "family.py":
                name = "Family"
            for field in (name, *(f"{name}.{each}" for each in fields.get(name, ()) if each in given)):
                users[field].add(folder)

    def add(value: Any, folder: str) -> None:
        for each in value if isinstance(value, tuple) else ():
            add(each, folder)
        for kind in (each for each in type(value).__mro__ if each.__name__ in fields):
            users[kind.__name__].add(folder)
            for each in dataclasses.fields(kind):
                default = each.default_factory() if callable(each.default_factory) else each.default
                if (own := getattr(value, each.name)) != default:
                    users[f"{kind.__name__}.{each.name}"].add(folder)
                add(own, folder)

    for each in installed(FAMILIES):
        if each.distribution == NAME:
            loaded = each.load()
            folder = str(package_in(each.entry_point.module)).removeprefix("families/")
            add(loaded.build(None) if isinstance(loaded, FamilyPlugin) else loaded, folder)
    return {name: folders for name, folders in users.items() if name.split(".")[0] in fields}


def users_of_engine_names() -> dict[str, set[str]]:
    """Return the folders of the families that import each name of the engine that the engine itself does not use."""
    users, used = defaultdict[str, set[str]](set), set[str]()
    for path in OURS:
        package = own_package(path)
        for node in statements(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{NAME}.engine"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                used |= names if line_of(package) != PLUGIN else set()
                for name in names - used:
                    users[name].add(package.removeprefix("families/"))
        if package.split("/")[0] == "engine":
            loaded = (each for each in walk(parsed(path)) if isinstance(each, ast.Name))
            used |= {f"{module_name(path)}.{each.id}" for each in loaded}
    for each in installed(FAMILIES):
        loaded = each.load()
        for reference in getattr(loaded, "architectures", {}).values():
            if (name := reference.replace(":", ".")) in users:
                users[name].add(each.name)
    return {name.removeprefix(f"{NAME}."): folders for name, folders in users.items() if name not in used}


def test_core_has_nothing_for_a_single_family() -> None:
    """No field of a family's data, and no name in `engine/`, is used by one built-in family only.

    Such a part belongs in that family's folder, as a mechanism (`stretto.family.mechanism`), a module or a prompt.
    """
    data = users_of_family_data()
    users = {name: folders for name, folders in data.items() if len(data.get(name.split(".")[0], "")) != 1}
    users |= {name: folders for name, folders in data.items() if "." not in name} | users_of_engine_names()
    found = defaultdict[str, set[str]](set)
    for name, (folder, *others) in users.items():
        if not others:
            found[folder].add(name)
    assert not found


def protected_names(node: ast.ClassDef) -> set[str]:
    """Return the protected names that a class defines: methods, fields, and attributes that it assigns to `self`."""
    names = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    for each in walk(node):
        is_stored = isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        if is_stored and getattr(each.value, "id", "") == "self":
            names.add(each.attr)
    for each in node.body:
        targets = (
            each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if name.startswith("_") and not name.endswith("__")} - {
        "_replace"
    }  # of named tuples


def protected_uses(sources: Mapping[str, ast.Module], folders: Mapping[str, str]) -> list[str]:
    """Return a line for each use, in a family's folder, of a protected attribute that other folders define.

    Args:
        sources: Syntax trees, keyed by module.
        folders: Folder of each module of a family, keyed by module.
    """
    classes = Classes({module: tree.body for module, tree in sources.items()})
    own = {key: protected_names(node) for key, node in classes.nodes.items()}
    found = []
    for module, folder in folders.items():
        others = set().union(*(names for (where, _), names in own.items() if folders.get(where) != folder))
        others -= set().union(*(names for (where, _), names in own.items() if folders.get(where) == folder))
        for node in walk(sources[module]):
            inherited = set[str]()
            if isinstance(node, ast.ClassDef) and (module, node.name) in classes.nodes:
                lineage = classes.lineage((module, node.name))
                inherited = set().union(*(own[key] for key in lineage if folders.get(key[0]) != folder))
            for each in walk(node) if inherited else [node]:
                if isinstance(each, ast.Attribute) and (
                    each.attr in inherited or (each.attr in others and ast.unparse(each.value) != "self")
                ):
                    found.append(f"{module}:{each.lineno}: {ast.unparse(each)}")
    return sorted({*found})


def test_sampling_option_is_in_three_files() -> None:
    """Range and description, field and column, effect in torch and in kernels; all other code reads these."""
    others = {"cpu_backend", "lab", "tests"}  # vLLM's own option, scripts of authors
    naming = set()
    for folder in ("python_backend", "contract", "client", "gateway", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            is_default = path.name == "family.py" or others & {*path.relative_to(ROOT).parts}
            if not is_default and re.search(r"\bmin_p\b|\bMIN_P\b|\blogit_span\b|\bkeep_near\b", path.read_text()):
                naming.add(str(path.relative_to(ROOT)))
    assert naming == {
        "contract/stretto_contract/schema.py",
        "python_backend/stretto/records/sampling.py",
        "python_backend/stretto/engine/kernels/logit_options.py",
    }


def test_families_use_only_public_names_of_the_core() -> None:
    files = [path for path in OURS if not is_route(path)]
    sources = {module_name(path): parsed(path) for path in files}
    folders = {module_name(path): own_package(path) for path in files if line_of(own_package(path)) == PLUGIN}
    assert not protected_uses(sources, folders)


def test_use_of_a_protected_name_is_found() -> None:
    core = "class Draw:\n    _size: int\n    def __init__(self, heads):\n        self._heads, self.tables = heads, 1\n"
    mine = """from core import Draw
class Base(Draw):
    _own = 1
class Mine(Base):
    def run(self, other):
        return self._heads, other._size, self._own, other._own
"""
    sources = {"core": ast.parse(core), "mine": ast.parse(mine)}
    assert protected_uses(sources, {"mine": "families/mine"}) == ["mine:6: other._size", "mine:6: self._heads"]


def oversized(path: Path) -> list[str]:
    """Return a line for the file if it is too long, and for each function that is too long or takes too much."""
    num_lines, most = len(path.read_text().splitlines()), MAX_ADAPTER_LINES if path in ADAPTERS else MAX_FILE_LINES
    found = [f"{identity(path)}: {num_lines} lines"] if num_lines > most else []
    for node in statements(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                found.append(f"{identity(path)}:{node.lineno}: {node.name} is too long")
            num_arguments = len(node.args.args + node.args.kwonlyargs) - 1
            if node.name == "__init__" and num_arguments > MAX_CONSTRUCTOR_ARGUMENTS:
                found.append(f"{identity(path)}:{node.lineno}: {num_arguments} constructor arguments")
    return found


def test_file_and_function_sizes_are_limited() -> None:
    violations = [line for path in SOURCES for line in oversized(path)]
    assert not violations, "\n".join(violations)


Key = tuple[str, str]  # module and name of a class


class Classes:
    """Classes of some modules, and their base classes among these.

    Args:
        sources: Statements, keyed by module.
    """

    def __init__(self, sources: Mapping[str, list[ast.stmt]]):
        self.nodes: dict[Key, ast.ClassDef] = {}
        self._names: dict[str, dict[str, Key]] = {}
        for module, nodes in sources.items():
            self._names[module] = {}
            for node in nodes:
                if isinstance(node, ast.ClassDef):
                    self.nodes[module, node.name] = node
                    self._names[module][node.name] = module, node.name
                elif isinstance(node, ast.ImportFrom):
                    known = {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
                    self._names[module] = known | self._names[module]

    def lineage(self, key: Key) -> set[Key]:
        """Return a class and all its base classes."""
        found = {key}
        for base in self.nodes[key].bases:
            while isinstance(base, ast.Subscript):  # Generic[...] and its like
                base = base.value
            parent = self._names[key[0]].get(ast.unparse(base), ("", ""))
            if parent in self.nodes and parent != key:
                found |= self.lineage(parent)
        return found


def class_sizes(sources: Mapping[str, list[ast.stmt]]) -> dict[Key, int]:
    """Return the number of lines of every class, including its base classes in `sources`."""
    classes = Classes(sources)

    def num_lines(key: Key) -> int:
        node = classes.nodes[key]
        assert node.end_lineno is not None
        return node.end_lineno - node.lineno + 1

    return {key: sum(map(num_lines, classes.lineage(key))) for key in classes.nodes}


def test_class_size_including_inherited_code_is_limited() -> None:
    sizes = class_sizes({module_name(path): statements(path) for path in SOURCES if path not in ADAPTERS})
    long = {key: size for key, size in sizes.items() if size > MAX_CLASS_LINES}
    assert not long


def test_inherited_lines_are_counted_once() -> None:
    base = "class A:\n    x = 1\n    y = 2\n\nclass B(A): pass\n"
    heir = "from base import A, B\nfrom other import C\n\nclass D(B, A, C):\n    z = 3\n"
    sizes = class_sizes({"base": ast.parse(base).body, "heir": ast.parse(heir).body})
    assert sizes == {("base", "A"): 3, ("base", "B"): 4, ("heir", "D"): 6}


def banned_names(path: Path) -> list[str]:
    """Return a line for each use of a banned name in `path`, including the file's own name."""
    found = [f"{identity(path)}: its name"] if path.stem in BANNED_NAMES else []
    text = path.read_text()
    if not BANNED_WORD.search(text):
        return found  # skip the tokenizer, which is needed only to leave out strings and comments
    return found + [
        f"{identity(path)}:{token.start[0]}: {token.string}"
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME
        and token.string in BANNED_NAMES
        and not token.line.startswith(("from torch.", "from packaging."))  # modules of other packages
    ]


def test_no_banned_names() -> None:
    violations = [line for path in SOURCES for line in banned_names(path)]
    assert not violations, "\n".join(violations)


def test_every_source_file_has_a_docstring() -> None:
    missing = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(parsed(path))]
    assert not missing


def test_importing_the_package_is_cheap() -> None:
    """The package exports `SpeechLLM`, but imports it only on first use."""
    loaded = "import stretto, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "stretto" in names
    assert not {"numpy", "pydantic", "torch", "vllm"} & set(names)
    schema = loaded.replace("import stretto,", "import stretto_contract.schema,")
    names = subprocess.run([sys.executable, "-c", schema], capture_output=True, text=True, check=True).stdout.split()
    assert "stretto_contract" in names
    assert not {"numpy", "pydantic", "grpc", "tritonclient"} & set(names), "the server's processes import it, too"
    with pytest.raises(AttributeError, match="no attribute 'Speech'"):
        __import__("stretto").Speech  # noqa: B018
