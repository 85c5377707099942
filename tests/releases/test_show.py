"""`stretto show`: the names of all releases, the facts about one, and the commands that install it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stretto.cli import main
from stretto.convert.command import arguments
from stretto.family.plugin import FamilyPlugin
from stretto.family.recognition import Listing, Match, Needed
from stretto.releases.catalogue import entries
from stretto.releases.store import Request
from tests import hub as loopback
from tests.installed_models import install
from tests.releases.test_fetch import prepared

QWEN = {"model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_type": "base"}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def commands(output: str) -> list[list[str]]:
    lines = output.partition("\n\n")[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("command", ["show", "list --all"])
def test_all_names_are_listed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry.name for entry in entries()]
    assert main(command.split()) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    assert main([*command.split(), "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == names


def test_name_and_alias_show_facts_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, "qwen3-tts")
    assert output == shown(capsys, "qwen3-tts-1.7b")
    assert "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice @ 0c0e305" in output
    assert "licence      Apache-2.0 (https://" in output
    download, convert, make, serve = commands(output)
    assert download[:3] == ["hf", "download", "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice"]
    assert arguments(convert[2:]).out == Path("qwen3-tts")
    assert make[-1] == serve[-1] == "qwen3-tts-served"


def test_folder_is_converted_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    release = tmp_path / "my release"
    release.mkdir()
    for name in ("model.safetensors", "speech_tokenizer/model.safetensors", "vocab.json"):
        (release / name).parent.mkdir(exist_ok=True)
        (release / name).touch()
    (release / "config.json").write_text(json.dumps(QWEN))
    output = shown(capsys, "./my release")
    assert "family       qwen3_tts" in output
    convert, _, _ = commands(output)
    assert convert[:5] == ["stretto", "convert", "qwen3-tts", "--model", "my release"]
    assert convert[-2:] == ["--out", "my-release"]


def test_licence_of_a_repository_is_that_of_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"config.json": json.dumps(QWEN).encode(), "model.safetensors": b""}
    with loopback.Hub() as hub:
        hub.add("acme/stated", files, card={"license": "cc-by-nc-4.0"})
        hub.add("acme/silent", files)
        prepared(monkeypatch, tmp_path / "home", hub.url)
        stated, silent = shown(capsys, "acme/stated"), shown(capsys, "acme/silent")
    assert f"licence      CC-BY-NC-4.0, not for commercial use ({hub.url}/acme/stated)\n" in stated
    assert "unproved     revision, sizes, gated\n" in stated
    assert "licence      not confirmed\n" in silent
    assert "unproved     revision, sizes, licence, gated\n" in silent


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("qwen-tts", 5, "qwen-tts: no release of this name; did you mean qwen3-tts"),
        ("voice", 5, "for the folder, write ./voice"),
        ("a/b/c", 2, "expected a name, OWNER/NAME or an existing folder, got 'a/b/c'"),
        ("./empty", 2, "expected a folder with a release, got an empty folder"),
        ("\x1b[2J", 2, "got '\\x1b[2J'"),
    ],
)
def test_unknown_release_is_refused_in_one_line(
    text: str,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("voice", "empty"):
        (tmp_path / name).mkdir()
    assert main(["show", text]) == status
    out, errors = capsys.readouterr()
    assert out == ""
    assert message in errors
    assert errors.count("\n") == 1


def test_control_characters_of_a_folder_are_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a\x1b\u202eb"  # the second reverses the writing direction
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    assert main(["show", f"./{name}"]) == 5
    errors = capsys.readouterr().err
    assert "\x1b" not in errors
    assert "\u202e" not in errors
    assert "not a release of a supported family (config.json: model_type 'llama')" in errors


def recognise_names(listing: Listing) -> list[Match]:
    """Recognise a release by its config, as the function of a plug-in: it names the model and the folder's voices."""
    names = listing.json("config.json")
    voices = Needed("acme/voices", (f"*.{names['voices']}.safetensors",), to="voices")
    return [Match("tiny", ("*",), ("--model", f"{{view}}/{names['model']}"), companions=(voices,))]


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that writes a release in the current folder, whose config names a model and voices."""
    monkeypatch.chdir(tmp_path)
    function = f"{__name__}:recognise_names"
    naming = FamilyPlugin("tiny", lambda vocabulary: None, recognise=function)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr("stretto.releases.target.plugins", lambda: [naming])

    def write(model: str, voices: str) -> None:
        (tmp_path / "release").mkdir()
        (tmp_path / "release/config.json").write_text(json.dumps({"model": model, "voices": voices}))

    return write


def test_commands_run_nothing_that_a_release_contains(
    named: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user may paste the commands into a shell."""
    (tmp_path / "bin").mkdir()
    for name in ("hf", "stretto"):
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    odd = "$(touch spawned)`touch spawned`\";touch spawned;'touch spawned"
    named("lm.safetensors", odd)
    lines = shown(capsys, "./release").partition("\n\n")[2]
    assert odd in "".join(shlex.split(lines))
    environment = {"PATH": f"{tmp_path / 'bin'}:/bin:/usr/bin"}
    assert subprocess.run(["sh", "-euc", lines], env=environment, capture_output=True).returncode == 0
    assert not (tmp_path / "spawned").exists()


def test_file_names_with_braces_are_kept(named: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    named("{x.y[0]}.safetensors", "a")
    _, convert, _, _ = commands(shown(capsys, "./release"))
    assert convert[convert.index("--model") + 1] == "release/{x.y[0]}.safetensors"


@pytest.mark.parametrize("name", ["a/..", "--token/a", "a/-b"])
def test_odd_name_of_a_companion_is_no_repository(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "model.pth").touch()
    record = {"token_list": [], "token_bias": {"codec": 1}, "subword_model": name}
    (tmp_path / "release" / "config.yaml").write_text(json.dumps(record))
    assert name not in shown(capsys, "./release")


def test_torch_is_not_imported() -> None:
    code = "import sys\nfrom stretto.cli import main\nmain(['show', 'qwen3-tts'])\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


def test_name_that_list_shows_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRETTO_MODELS", str(tmp_path))
    install(tmp_path, name="my-voice", request=Request("qwen3-tts"))
    assert shown(capsys, "My_Voice") == shown(capsys, "qwen3-tts")
