import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.bundling.parts import MANIFEST, DamagedPart, Installation, Manifest, sha256_of, write_parts


def make_tree(folder: Path) -> Path:
    """Write files of many sizes with incompressible content; one is larger than several parts."""
    noise = random.Random(0)
    for name, size in (("site/a.py", 10), ("site/deep/b.so", 5000), ("site/empty", 0), ("source/c", 900)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(noise.randbytes(size))
    (folder / "site/a.py").chmod(0o755)
    return folder


def files_below(folder: Path) -> dict[str, tuple[bytes, bool]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), bool(p.stat().st_mode & 0o100)) for p in found}


def test_bundle_parts_respect_the_size_limit_and_rebuild_the_tree(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    manifest = write_parts(tree, tmp_path / "out", 1000, {"wheels": []})
    assert len(manifest.parts) >= 6
    assert all(part.size <= 1000 for part in manifest.parts)
    assert [sha256_of(tmp_path / "out" / part.name) for part in manifest.parts] == [p.sha256 for p in manifest.parts]
    installation = Installation(tmp_path / "there")
    assert installation.take([tmp_path / "out" / part.name for part in manifest.parts]) == []
    installation.finish()
    assert files_below(installation.bundle) == files_below(tree)


def test_bundle_is_found_without_pythonpath_and_hides_packages_for_numpy_2(tmp_path: Path) -> None:
    module, packages = tmp_path / "there/bundle/site/bundled_module.py", tmp_path / "packages"
    for path in (module, packages / "scipy/__init__.py", packages / "bundled_module.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    Installation(tmp_path / "there").write_path_file(packages)
    check = "import importlib.util as i, bundled_module as m; print(m.__file__, i.find_spec('scipy'))"
    command = [sys.executable, "-S", "-c", f"import site; site.addsitedir({str(packages)!r}); {check}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(module), "None"]


def test_equal_trees_give_equal_parts(tmp_path: Path) -> None:
    made = [write_parts(make_tree(tmp_path / name), tmp_path / f"{name}-out", 1000, {}).parts for name in "ab"]
    assert made[0] == made[1]


def test_bundle_parts_may_arrive_in_any_order_and_repeatedly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [part.name for part in write_parts(make_tree(tmp_path / "tree"), out, 1500, {}).parts]
    for index, name in enumerate(reversed(names)):
        missing = Installation(tmp_path / "there").take([out / name, out / name])
        assert missing == names[: len(names) - 1 - index]


def test_damaged_part_is_refused_and_its_intact_copy_accepted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [part.name for part in write_parts(make_tree(tmp_path / "tree"), out, 1500, {}).parts]
    good = (out / names[0]).read_bytes()
    (out / names[0]).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    installation = Installation(tmp_path / "there")
    with pytest.raises(DamagedPart, match="checksum"):
        installation.take([out / names[0]])
    (out / names[0]).write_bytes(good)
    assert installation.take([out / names[0]]) == names[1:]
    stray = tmp_path / "stray"
    stray.write_bytes(b"")
    with pytest.raises(DamagedPart, match="not one of"):
        installation.take([stray])


def test_parts_of_different_bundles_are_refused(tmp_path: Path) -> None:
    first = write_parts(make_tree(tmp_path / "tree"), tmp_path / "one", 1500, {"python": "3.12"})
    write_parts(tmp_path / "tree", tmp_path / "two", 1500, {"python": "3.11"})
    installation = Installation(tmp_path / "there")
    installation.take([tmp_path / "one" / first.parts[0].name])
    with pytest.raises(DamagedPart, match="another bundle"):
        installation.take([tmp_path / "two" / MANIFEST])


def test_manifest_round_trips_through_its_file(tmp_path: Path) -> None:
    manifest = write_parts(make_tree(tmp_path / "tree"), tmp_path / "out", 1500, {"python": "3.12"})
    assert Manifest.read(tmp_path / "out" / MANIFEST) == manifest
