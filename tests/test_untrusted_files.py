"""Reading an untrusted file gives a value, or an error that mentions the file."""

import json
import os
from pathlib import Path

import pytest

from stretto.errors import CheckpointError
from stretto.untrusted_files import (
    MAX_DEPTH,
    MAX_LAYERS,
    MAX_TEXT_BYTES,
    check_layers,
    json_object,
    read_text,
    regular_file,
    released_file,
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


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layers", "residual_lm_num_layers"])
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


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", 3, None])
def test_index_may_name_only_files_in_its_own_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a file name without a folder"):
        released_file(tmp_path, name)


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


def test_symlinked_release_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "config.json").write_text("{}")
    (tmp_path / "latest").symlink_to("release")
    assert json_object(released_file(tmp_path / "latest", "config.json")) == {}
