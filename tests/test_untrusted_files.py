"""Reading an untrusted file gives a value, or an error that mentions the file."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

from stretto.errors import CheckpointError
from stretto.untrusted_files import (
    MAX_DEPTH,
    MAX_LAYERS,
    MAX_TEXT_BYTES,
    check_layers,
    json_object,
    named_file,
    plain_name,
    read_text,
    regular_file,
    released_file,
    released_folder,
    yaml_mapping,
)

YAML = {
    "deep": ("[" * 200_000, "more than 64 levels"),
    "deep mappings": ("".join(f"{' ' * level}a:\n" for level in range(500)), "more than 64 levels"),
    "a long number": ("a: " + "9" * 10**6, "a number has 1000000 characters"),
    "a long number of base 60": ("a: 1" + ":1" * 100_000, "a number has 200001 characters"),
    "an impossible date": ("a: 2026-02-31", "day is out of range for month"),
    "aliases of aliases": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "more than 5000000 values",
    ),
    "a value in itself": ("a: &a [*a]", "refers to a value that contains it, or is missing"),
    "a tag": ("a: !!python/object/apply:os.mkdir [was-run]", "could not determine a constructor"),
    "a list": ("[1]", "expected a mapping, got list"),
    "a list as a key": ("{[1]: 2}: 3", "expected YAML"),
}


@pytest.mark.parametrize("kind", YAML)
def test_unsafe_or_malformed_yaml_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = YAML[kind]
    Path("config.yaml").write_text(text)
    with pytest.raises(CheckpointError) as error:
        yaml_mapping(Path("config.yaml"))
    assert str(error.value).startswith("config.yaml: expected ")
    assert message in str(error.value)
    assert len(str(error.value)) < 500
    assert not Path("was-run").exists()


def test_yaml_used_by_releases_is_read(tmp_path: Path) -> None:
    """The YAML has anchors, long lists, dates, numbers, and a string of digits, which is not a number."""
    (tmp_path / "config.yaml").write_text(f"a: &a [1, 2.5e-3]\nb: *a\nc: 2026-02-28\nd: '{'9' * 500}'\n")
    record = yaml_mapping(tmp_path / "config.yaml")
    assert (record["a"], record["b"], record["d"]) == ([1, 2.5e-3], [1, 2.5e-3], "9" * 500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' * 100_000, "RecursionError"),
        ('{"a": ' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "at most 64 levels of JSON"),
        (f'{{"a": {"9" * 10**6}}}', "an integer has 1000000 digits, more than 20"),
        ("[]", "expected a JSON object, got list"),
        ('"\\ud800', "JSONDecodeError"),
    ],
)
def test_malformed_release_json_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as error:
        json_object(path)
    assert str(error.value).startswith(f"{path}: expected ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["num_hidden_layers", "n_layers", "residual_lm_num_layers", "nar_layer", "num_blocks", "depth", "n_codebooks"],
)
def test_config_with_too_many_layers_is_refused(name: str) -> None:
    check_layers({"a": [{name: MAX_LAYERS}], "layer_types": ["full"], "layers": None}, "config.json")
    with pytest.raises(CheckpointError, match=f"config.json: {name}: expected at most 1024 layers, got 1000000"):
        check_layers({"a": [{name: 10**6}]}, "config.json")


def test_json_at_the_maximum_depth_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)
    assert "a" in json_object(tmp_path / "config.json")


def test_fifo_or_folder_as_config_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    for read in (json_object, yaml_mapping, read_text, regular_file):
        with pytest.raises(CheckpointError, match="expected a regular file, got a FIFO, socket or device"):
            read(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="expected a regular file, got a folder"):
        json_object(tmp_path)


def test_oversized_text_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(CheckpointError, match=f"expected at most {MAX_TEXT_BYTES} bytes, got {MAX_TEXT_BYTES + 1}"):
        json_object(tmp_path / "config.json")


NAMES_LEADING_OUT = ["../secret", "/etc/passwd", "a/../../secret", "..", ".", "", "a//b", "a/", "a\0b"]


@pytest.mark.parametrize("name", [*NAMES_LEADING_OUT, "a/b", 3, None])
def test_config_or_index_may_name_only_files_in_its_own_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "secret"):
        path.touch()
    with pytest.raises(CheckpointError, match="expected a file name without a folder"):
        plain_name(tmp_path, name)
    with pytest.raises(CheckpointError, match=r"^config\.json: file: .*expected a file name without a folder"):
        named_file(tmp_path, {"file": name}, "file")


@pytest.mark.parametrize("name", NAMES_LEADING_OUT)
def test_paths_lead_to_files_below_the_release(name: str, tmp_path: Path) -> None:
    for read in (released_file, released_folder):
        with pytest.raises(CheckpointError, match="expected a file name without a folder"):
            read(tmp_path, name)


def test_missing_file_is_reported_with_the_field_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: file: .*none\.bin is missing$"):
        named_file(tmp_path, {"file": "none.bin"}, "file")
    with pytest.raises(CheckpointError, match=r"file is missing$"):
        named_file(tmp_path, {}, "file")


def test_links_may_point_only_within_the_same_release(tmp_path: Path) -> None:
    """A Hugging Face cache has such links: every file in a snapshot is a link to a blob."""
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    (snapshot / "speech_tokenizer").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "ab12").write_text(json.dumps({"a": 1}))
    (snapshot / "config.json").symlink_to("../../blobs/ab12")
    (snapshot / "speech_tokenizer" / "config.json").symlink_to("../../../blobs/ab12")
    (snapshot / "other.json").symlink_to("config.json")
    places = (snapshot, "config.json"), (snapshot / "speech_tokenizer", "config.json"), (snapshot, "other.json")
    for folder, name in places:
        assert json_object(released_file(folder, name)) == {"a": 1}
    (tmp_path / "secret").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a file of this release, got a link to .*"):
        released_file(snapshot, "tokenizer.json")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "cd34").write_text("{}")
    (cache / "tokenizer.json").symlink_to("../blobs/cd34")
    with pytest.raises(CheckpointError, match="expected a file of this release"):
        released_file(cache, "tokenizer.json")


HASH = "ab" + "01" * 31


def write_snapshot(cache: Path) -> Path:
    """Write a snapshot whose only file is in the store that repositories share, as `huggingface_hub` does."""
    repository = cache / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "ab12").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ab12")
    assert publish_blob_to_shared_store(
        blob_path=str(blobs / "ab12"), xet_hash=HASH, cache_dir=str(cache), expected_size=2, replace_existing=False
    )
    assert (blobs / "ab12").is_symlink()
    return snapshot


def test_blobs_in_the_shared_store_of_the_cache_are_read(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    assert json_object(released_file(snapshot, "config.json")) == {}
    (tmp_path / "latest").symlink_to(snapshot)
    assert json_object(released_file(tmp_path / "latest", "config.json")) == {}


Move = Callable[[Path], object]


def moved(name: str, target: str) -> Move:
    """Return a function that moves the shared blob to `name` in the cache, and links to it as `target`."""

    def move(cache: Path) -> None:
        blob = cache / "models--a--b" / "blobs" / "ab12"
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / "blobs" / "ab" / HASH).rename(cache / name)
        blob.unlink()
        blob.symlink_to(target)

    return move


def linked_store(cache: Path) -> None:
    (cache / "blobs").rename(cache / "elsewhere")
    (cache / "blobs").symlink_to("elsewhere")


def linked_blobs(cache: Path) -> None:
    blobs = cache / "models--a--b" / "blobs"
    blobs.rename(cache / "models--a--b" / "elsewhere")
    blobs.symlink_to("elsewhere")


def third_link(cache: Path) -> None:
    shared = cache / "blobs" / "ab" / HASH
    shared.rename(shared.with_name("cd" + HASH[2:]))
    shared.symlink_to("cd" + HASH[2:])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(moved("secret", "../../secret"), id="any file"),
        pytest.param(moved("blobs/ab/secret", "../../blobs/ab/secret"), id="not a hash"),
        pytest.param(moved(f"blobs/ab/{HASH}.refs", f"../../blobs/ab/{HASH}.refs"), id="the store's own file"),
        pytest.param(moved(f"blobs/cd/{HASH}", f"../../blobs/cd/{HASH}"), id="other folder of the store"),
        pytest.param(moved(f"blobs/{HASH}", f"../../blobs/{HASH}"), id="no folder of the store"),
        pytest.param(moved(f"blobs/AB/{HASH.upper()}", f"../../blobs/AB/{HASH.upper()}"), id="capitals"),
        pytest.param(
            moved("models--c--d/blobs/cd34", "../../models--c--d/blobs/cd34"), id="blob of another repository"
        ),
        pytest.param(lambda cache: (cache / "blobs" / ".huggingface-shared-blobs").unlink(), id="no marker"),
        pytest.param(third_link, id="a third link"),
        pytest.param(linked_store, id="linked store"),
        pytest.param(linked_blobs, id="linked folder of blobs"),
    ],
)
def test_blob_that_links_elsewhere_is_refused(change: Move, tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    change(tmp_path / "hub")
    assert (snapshot / "config.json").read_text() == "{}"
    with pytest.raises(CheckpointError, match="expected a file of this release, got a link to "):
        released_file(snapshot, "config.json")


def test_snapshot_that_links_to_the_store_directly_is_refused(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    (snapshot / "other.json").symlink_to(f"../../../blobs/ab/{HASH}")
    with pytest.raises(CheckpointError, match="expected a file of this release, got a link to "):
        released_file(snapshot, "other.json")


def test_linked_folder_may_not_lead_out_of_the_release(tmp_path: Path) -> None:
    root, outside = tmp_path / "release", tmp_path / "outside"
    for folder in (root / "voices" / "own", outside / "voices"):
        folder.mkdir(parents=True)
    for folder in (root / "voices" / "own", outside, outside / "voices"):
        (folder / "a.txt").write_text("text")
    (root / "alias").symlink_to("voices")
    assert read_text(released_file(root, "alias/own/a.txt")) == "text"
    assert released_folder(root, "alias/own") == root / "alias" / "own"
    assert released_folder(root, "none") == root / "none"
    (root / "linked").symlink_to("../outside")
    (root / "voices" / "linked").symlink_to(outside)
    for name in ("linked", "linked/voices", "voices/linked", "alias/linked"):
        with pytest.raises(CheckpointError, match="expected a folder of this release, got a link to "):
            released_folder(root, name)
        with pytest.raises(CheckpointError, match="expected a file of this release, got a link to "):
            released_file(root, f"{name}/a.txt")
    (root / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match=r"loop: expected a folder"):
        released_folder(root, "loop")
    with pytest.raises(CheckpointError, match=r"loop: expected a file"):
        released_file(root, "loop")


def test_symlinked_release_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "config.json").write_text("{}")
    (tmp_path / "latest").symlink_to("release")
    assert json_object(released_file(tmp_path / "latest", "config.json")) == {}
