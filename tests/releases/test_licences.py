"""Licences of releases, the question to the user, and the record of the answers."""

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stretto.releases.catalogue import Licence, RepositoryFiles
from stretto.releases.licences import ACCEPTED, described, licence_of, require, text_digest
from stretto.releases.messages import NotAllowed

FREE = Licence("MIT", "http://hub/a/b", "yes")
BOUND = Licence("CC-BY-NC-4.0", "http://hub/a/b", "no", ("No commercial use.",))
QUESTION = "Accept? [y/N] "
PROGRAM = """
import sys
from pathlib import Path
from stretto.releases.catalogue import Licence
from stretto.releases.messages import NotAllowed
from stretto.releases.licences import require
try:
    require({"a/b": Licence("CC-BY-NC-4.0", "http://hub/a/b", "no")}, Path(sys.argv[1]), False)
except NotAllowed as error:
    print(error)
    sys.exit(error.status)
"""


def test_free_licence_is_not_asked_for_and_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require({"a/b": FREE}, tmp_path, accepts=False)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / ACCEPTED).exists()


def test_licence_is_accepted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models"
    message = "a/b: CC-BY-NC-4.0, commercial use: no: read http://hub/a/b, then use --accept-license"
    with pytest.raises(NotAllowed) as caught:
        require({"a/b": BOUND, "c/d": FREE}, folder, accepts=False)
    assert (caught.value.status, str(caught.value)) == (6, message)
    assert "a/b: CC-BY-NC-4.0, commercial use: no http://hub/a/b" in capsys.readouterr().err
    require({"a/b": BOUND}, folder, accepts=True)
    capsys.readouterr()
    require({"a/b": BOUND}, folder, accepts=False)
    assert capsys.readouterr().err == ""
    for other in ({"a/b": Licence("CC-BY-NC-4.1", "", "no")}, {"a/c": BOUND}):
        with pytest.raises(NotAllowed):
            require(other, folder, accepts=False)


@pytest.mark.parametrize(
    ("name", "is_text"),
    [
        ("LICENSE", True),
        ("license.txt", True),
        ("voices/LICENCE-CC0.md", True),
        ("COPYING", True),
        ("unlicensed.txt", False),
        ("LICENSES/readme", False),
    ],
)
def test_changed_text_is_asked_for_again(name: str, is_text: bool, tmp_path: Path) -> None:
    digests = [text_digest({name: {"sha256": None, "oid": oid}, "a": {"sha256": "0", "oid": oid}}) for oid in "ab"]
    require({"a/b": BOUND}, tmp_path, True, {"a/b": digests[0]})
    require({"a/b": BOUND}, tmp_path, False, {"a/b": digests[0]})
    assert (digests[0] != digests[1]) == is_text
    if is_text:
        with pytest.raises(NotAllowed):
            require({"a/b": BOUND}, tmp_path, False, {"a/b": digests[1]})


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '["a/b"]\n', '"a/b"\nnull\n5\n', "\udcff"])
def test_damaged_record_accepts_nothing_and_is_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / ACCEPTED
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(NotAllowed):
        require({"a/b": BOUND}, tmp_path, accepts=False)


def test_two_at_once_are_both_recorded(tmp_path: Path) -> None:
    names = [f"a/{number}" for number in range(50)]
    threads = [threading.Thread(target=require, args=({name: BOUND}, tmp_path, True)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require(dict.fromkeys(names, BOUND), tmp_path, accepts=False)


def answered(folder: Path, text: bytes) -> tuple[int, str]:
    """Answer the question at a terminal, and return the exit status and the output."""
    front, back = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    with subprocess.Popen(command, stdin=back, stdout=back, stderr=back, start_new_session=True) as process:
        os.close(back)
        shown = ""
        while QUESTION not in shown:
            try:
                piece = os.read(front, 1000)
            except OSError:  # the process has ended without a question
                break
            shown += piece.decode()
        else:
            os.write(front, text)
            try:
                while piece := os.read(front, 1000):
                    shown += piece.decode()
            except OSError:
                pass
        status = process.wait()
    os.close(front)
    return status, shown


@pytest.mark.parametrize("text", [b"n\n", b"\n", b"no\n", b"\x04", b"yess\n"])
def test_other_answers_than_yes_do_not_accept(text: bytes, tmp_path: Path) -> None:
    status, shown = answered(tmp_path, text)
    assert status == 6
    assert "then use --accept-license" in shown
    assert not (tmp_path / ACCEPTED).exists()


def test_yes_is_asked_for_once(tmp_path: Path) -> None:
    status, shown = answered(tmp_path, b"y\n")
    assert (status, QUESTION in shown) == (0, True)
    assert answered(tmp_path, b"n\n") == (0, "")


def test_closed_input_does_not_accept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 6
    assert QUESTION not in done.stderr


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, "no licence is stated, commercial use: unknown"),
        ("mit", "MIT, commercial use: yes"),
        ("Apache-2.0", "Apache-2.0, commercial use: yes"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0, commercial use: no"),
        ("other", "other, commercial use: unknown"),
    ],
)
def test_licence_of_the_model_card(stated: str | None, expected: str) -> None:
    assert described(licence_of(RepositoryFiles("a/b", ("*",)), stated, "http://hub")) == expected


def test_names_table_wins_over_the_model_card() -> None:
    assert licence_of(RepositoryFiles("a/b", ("*",), licence=BOUND), "mit", "http://hub") == BOUND


def test_control_characters_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    licence = licence_of(RepositoryFiles("a/b", ("*",)), "mit\x1b[2J\r\u202e", "http://hub")
    with pytest.raises(NotAllowed):
        require({"a/b": licence}, tmp_path, accepts=False)
    assert not {"\x1b", "\r", "\u202e"} & {*capsys.readouterr().err}
