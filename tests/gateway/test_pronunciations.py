"""Pronunciation dictionaries of keys: stored, exported, used for speech, and private to their owner."""

import encodings
import json
from collections.abc import Callable, Sequence
from encodings.aliases import aliases
from pathlib import Path
from typing import Any

import httpx
import pytest

from stretto_contract.lexicon_files import ENCODING, read_lexicon
from stretto_contract.pronunciation import DictionaryEntry, InvalidEntry
from stretto_gateway.config import Limits
from stretto_gateway.pronunciation_command import main
from stretto_gateway.pronunciation_store import PronunciationStore
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.voice_store import EVERYBODY
from tests.client.fake_server import PROFILE
from tests.gateway.conftest import SPOKEN, Running, Start
from tests.gateway.test_voices import KEYS
from tests.patience import PATIENCE_S

PLS = """<lexicon version="1.0" alphabet="cmu" xmlns="http://www.w3.org/2005/01/pronunciation-lexicon">
<lexeme><grapheme>SQL</grapheme><alias>sequel</alias></lexeme>
<lexeme><grapheme>cat</grapheme><phoneme>K AE1 T</phoneme></lexeme></lexicon>"""
READS_PHONEMES = PROFILE | {"phonemes": ["cmu"]}
CAT = {"phonemes": "K AE1 T", "alphabet": "cmu"}


async def ask(
    running: Running, method: str, path: str = "/pronunciations", key: int = 0, **given: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEYS[key]}"}
    async with httpx.AsyncClient(base_url=f"{running.url}/v1/audio", headers=headers, timeout=PATIENCE_S) as http:
        return await http.request(method, path, **given)


async def spoken_with(running: Running, text: str, key: int = 0, **fields: Any) -> Any:
    """Speak a text and return the entries that the server received."""
    answer = await ask(running, "POST", "/speech", key, json={"input": text, "response_format": "pcm"} | fields)
    assert answer.status_code == 200, answer.text
    return json.loads(running.behind.requests[-1]["options"]).get("pronunciations")


@pytest.mark.slow
@pytest.mark.parametrize(("data", "form"), [(PLS, "pls"), (json.dumps({"SQL": "sequel", "cat": CAT}), "json")])
async def test_stored_dictionary_is_exported_used_and_deleted(
    start: Start, tmp_path: Path, data: str, form: str
) -> None:
    first = await start(SPOKEN, READS_PHONEMES, voices=tmp_path / "voices", keys=KEYS)
    stored = await ask(first, "PUT", content=data)
    assert (stored.status_code, stored.json()["num_entries"]) == (200, 2)
    assert ResponseHeader.IGNORED not in stored.headers
    again = await start(SPOKEN, READS_PHONEMES, voices=tmp_path / "voices", keys=KEYS)
    for running in (first, again):
        exported = await ask(running, "GET", params={"format": form})
        assert read_lexicon(exported.content) == (
            DictionaryEntry("SQL", "sequel"),
            DictionaryEntry("cat", "K AE1 T", "cmu"),
        )
        assert await spoken_with(running, "A CAT.") == {"cat": CAT}
        assert await spoken_with(running, "A Cat.", pronunciations={"CAT": "dog", "a": "the"}) == {
            "CAT": "dog",
            "a": "the",
        }
        assert await spoken_with(running, "A dog.") is None
        assert await spoken_with(running, "A dog.", markup="none") is None
        assert len(await spoken_with(running, "A **c**at.")) == 2  # the word occurs without the markup
    for deleted in (True, False):
        assert (await ask(again, "DELETE")).json()["deleted"] is deleted
    assert (await ask(first, "GET")).json() == {}
    assert await spoken_with(first, "A cat.") is None


async def test_keys_have_separate_dictionaries(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, voices=tmp_path / "voices", keys=KEYS)
    assert (await ask(running, "PUT", json={"cat": "dog"})).status_code == 200
    assert (await ask(running, "GET", key=1)).json() == {}
    assert await spoken_with(running, "A cat.", key=1) is None
    assert (await ask(running, "DELETE", key=1)).json()["deleted"] is False
    assert await spoken_with(running, "A cat.") == {"cat": "dog"}


@pytest.mark.parametrize("strict", [False, True])
async def test_phonemes_that_the_model_does_not_read_are_listed_or_refused(
    start: Start, tmp_path: Path, strict: bool
) -> None:
    running = await start(SPOKEN, voices=tmp_path / "voices", keys=KEYS, strict=strict)
    body = {"input": "A cat.", "pronunciations": {"cat": CAT, "A": "the"}}
    for answer in (
        await ask(running, "PUT", json=body["pronunciations"]),
        await ask(running, "POST", "/speech", json=body),
    ):
        if strict:
            expected = "pronunciations.cat: expected a spelling ('tiny' reads no phonemes), got 'cmu'"
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, expected)
        else:
            assert (answer.status_code, answer.headers[ResponseHeader.IGNORED]) == (200, "pronunciations.cat")
    if not strict:
        assert await spoken_with(running, "A cat.") == {"A": "the"}


async def test_streamed_text_has_the_whole_dictionary(start: Start, tmp_path: Path) -> None:
    """The words that follow are not known when the speech begins."""
    from websockets.asyncio.client import connect

    running = await start(SPOKEN, voices=tmp_path / "voices", keys=KEYS)
    await ask(running, "PUT", json={"cat": "dog", "mouse": "rat"})
    url = f"{running.url.replace('http', 'ws', 1)}/v1/audio/speech/stream"
    async with connect(url, additional_headers={"authorization": f"Bearer {KEYS[0]}"}) as socket:
        for event in ({"type": "session.config", "response_format": "pcm"}, {"type": "input.text", "text": "A ca"}):
            await socket.send(json.dumps(event))
        await socket.send(json.dumps({"type": "input.text", "text": "t."}))
        await socket.send(json.dumps({"type": "session.close"}))
        async for _ in socket:
            pass
    assert json.loads(running.behind.requests[-1]["options"])["pronunciations"] == {"cat": "dog", "mouse": "rat"}


MANY = {f"w{index}": "x" for index in range(1001)}
LARGE = {f"word {index}": "x" * 400 for index in range(100)}
ENTITIES = '<!DOCTYPE l [<!ENTITY a "x">]><lexicon><lexeme><grapheme>&a;</grapheme></lexeme></lexicon>'


def lexicon(encoding: str) -> bytes:
    words = "<lexicon><lexeme><grapheme>cat</grapheme><alias>d\xf6g</alias></lexeme></lexicon>"
    return f'<?xml version="1.0" encoding="{encoding}"?>{words}'.encode("latin-1")


ENCODINGS = sorted({*aliases, *aliases.values(), "utf-7", "nonsense", "x" * 50_000, "iso-8859-12", "idna", "undefined"})


@pytest.mark.parametrize("encoding", ["iso-8859-1", "ISO-8859-15", "windows-1252"])
def test_encoding_of_pls_is_read(encoding: str) -> None:
    assert read_lexicon(lexicon(encoding)) == (DictionaryEntry("cat", "d\xf6g"),)


@pytest.mark.parametrize("name", [str, lambda name: name.replace("_", "-")], ids=["alias", "name"])
def test_other_encodings_of_pls_are_refused_and_not_kept(name: Callable[[str], str]) -> None:
    known = set(encodings._cache)  # type: ignore[attr-defined]
    for encoding in (name(each) for each in ENCODINGS):
        if not ENCODING.fullmatch(encoding) or encoding in ("utf-8", "us-ascii"):
            with pytest.raises(InvalidEntry, match=r"expected (PLS in UTF-8|well-formed PLS), got "):
                read_lexicon(lexicon(encoding))
    new = set(encodings._cache) - known  # type: ignore[attr-defined]
    assert not {each for each in new if not ENCODING.fullmatch(each.replace("_", "-"))}


REFUSED = [
    (lexicon("UTF-7"), "pronunciations: expected PLS in UTF-8, got the encoding 'UTF-7'"),
    (lexicon("shift_jis"), "pronunciations: expected PLS in UTF-8, got the encoding 'shift_jis'"),
    (lexicon("iso-8859-12"), "pronunciations: expected PLS in UTF-8, got an unknown encoding"),
    (b"", "pronunciations: expected a dictionary in JSON or PLS"),
    (b"[]", "pronunciations: expected an object of words and their spellings"),
    (ENTITIES.encode(), "pronunciations: expected PLS without a document type"),
    (json.dumps({"a": "<|end|>"}).encode(), "pronunciations.a: expected text without characters of markup"),
    (
        json.dumps({"hello": {"phonemes": "HH XX"}}).encode(),
        "pronunciations.hello.phonemes: expected symbols of the CMU dictionary, such as HH AH0 L OW1, got 'XX'",
    ),
    (json.dumps(MANY).encode(), "pronunciations: expected at most 1000 entries, got 1001"),
    (json.dumps(LARGE).encode(), "pronunciations: expected at most 40960 bytes of JSON"),
    (b" " * (2 << 20), "the body has more than"),
]


@pytest.mark.slow
async def test_invalid_dictionaries_are_refused_and_change_nothing(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, voices=tmp_path / "voices", keys=KEYS)
    await ask(running, "PUT", json={"cat": "dog"})
    for content, message in REFUSED:
        answer = await ask(running, "PUT", content=content)
        assert answer.status_code in (400, 413)
        assert message in answer.json()["error"]["message"]
        assert (await ask(running, "GET")).json() == {"cat": "dog"}


async def test_gateway_without_a_folder_stores_no_dictionary(start: Start) -> None:
    running = await start(SPOKEN, keys=KEYS)
    answer = await ask(running, "PUT", json={"cat": "dog"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
    assert await spoken_with(running, "A cat.", pronunciations={"cat": "dog"}) == {"cat": "dog"}


@pytest.mark.slow
def test_largest_dictionary_fits_into_a_request_and_damaged_ones_are_empty(tmp_path: Path) -> None:
    from stretto.preprocessing.options import MAX_OPTIONS_BYTES
    from stretto_gateway.fields import MAX_BYTES

    limits = Limits()
    assert limits.max_dictionary_bytes + MAX_BYTES < MAX_OPTIONS_BYTES
    store = PronunciationStore(tmp_path, limits.max_pronunciations, limits.max_dictionary_bytes)
    entries: Sequence[DictionaryEntry] = [DictionaryEntry("a", "b")]
    store.replace(EVERYBODY, entries)
    assert store.find(EVERYBODY) == tuple(entries)
    (path,) = tmp_path.glob("*/*")
    for text in ('{"a": ""}', "<", "{"):
        path.write_text(text)
        assert store.find(EVERYBODY) == ()
    with pytest.raises(ValueError, match="expected an owner"):
        store.find("../x")


async def test_command_imports_exports_and_removes(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The running gateway uses the dictionary of the command at once, for this key alone."""
    folder, key_file, lexicon = tmp_path / "voices", tmp_path / "key", tmp_path / "lexicon.pls"
    key_file.write_text(KEYS[0])
    running = await start(SPOKEN, READS_PHONEMES, voices=folder, keys=KEYS)

    def run(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main([*words, "--voices", str(folder), "--key-file", str(key_file)]) == status
        out, err = capsys.readouterr()
        return err if status else out

    lexicon.write_text(PLS)
    assert run("import", str(lexicon)) == "2 entries\n"
    assert await spoken_with(running, "A cat.") == {"cat": CAT}
    assert await spoken_with(running, "A cat.", key=1) is None
    for form in ("json", "pls"):
        lexicon.write_text(run("export", "--format", form))
        assert run("import", str(lexicon)) == "2 entries\n"
    assert run("remove") == ""
    assert run("remove", status=1) == "stretto pronunciations: there is no dictionary\n"
    assert run("export") == "{}\n"
    lexicon.write_text('{"hello": {"phonemes": "HH XX"}}')
    assert "hello.phonemes: expected symbols of the CMU dictionary" in run("import", str(lexicon), status=2)
    lexicon.write_text(ENTITIES)
    assert "expected PLS without a document type" in run("import", str(lexicon), status=2)
    assert "No such file" in run("import", str(tmp_path / "none"), status=1)
