"""Conversion of PersonaPlex: its numbers, its voices, refused archives, and inputs that it refuses."""

import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.kyutai.lab.random_moshi import lm_shapes
from plugins.kyutai.lab.random_personaplex import CONFIG, VOICES, write_archive, write_release
from plugins.kyutai.tests.moshi_release import REFUSED_CONFIGS, name_if_missing
from plugins.kyutai.tests.small_families import SMALL_PERSONAPLEX
from stretto.family.plugin import VOCABULARY, config_at
from stretto.testing.releases import REMOVED, SmallRelease
from stretto.testing.suite import FamilyCase
from stretto_kyutai.moshi.family import MoshiVocabulary
from stretto_kyutai.personaplex import PLUGIN, voices
from stretto_kyutai.personaplex.convert import PUBLISHED
from stretto_kyutai.personaplex.family import PersonaPlexVocabulary
from stretto_kyutai.personaplex.voices import read_voices
from tests.family_suite import FamilySuite

PCM = (np.sin(np.arange(30_000) ** 1.3 / 300) / 2).astype(np.float32)
RECORDED = {"role": "system", "audio": "pcm_in"}
WIDTH = CONFIG["dim"]
FILE = "voices/NATF0.pt"
ARCHIVE = "release/voices.tgz"
# tensors of the steps of the depth transformer for the codes of the user, which the model is given
UNUSED = re.compile(r"(?:depformer_in|gating|linears)\.(?:[89]|1\d)\.|depformer_emb\.(?:[789]|1\d)\.")


def write(folder: Path, size: str) -> list[str]:
    release = write_release(folder / "release", num_layers=1, depformer_num_layers=1)
    return ["personaplex", "--model", str(release)]


def voice_record(num_vectors: int = 3, **changed: Any) -> dict[str, Any]:
    """Return the contents of a valid voice file, with changes."""
    return {
        "embeddings": torch.ones(num_vectors, 1, 1, WIDTH),
        "cache": torch.ones(1, 17, 4, dtype=torch.int64),
    } | changed


@dataclass
class Executes:
    """Object whose unpickling would create a file."""

    path: Path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


def live(
    turns: Sequence[Mapping[str, object]] = (), pcm: np.ndarray | None = None, **options: object
) -> dict[str, Any]:
    """Return the inputs that begin a live session."""
    inputs: dict[str, Any] = {"options": json.dumps({"live": True, **options})}
    inputs |= {"messages": json.dumps(turns)} if turns else {}
    return inputs if pcm is None else inputs | {"pcm_in": pcm, "sample_rate": 24_000}


class TestPersonaPlex(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("shallow",),
        may_be_sharded=False,
        name_if_missing=name_if_missing,
        unneeded_tensors=[name for name in lm_shapes(CONFIG) if UNUSED.search(name)],
        # The published config.json has no hyperparameters, and does not name the other files.
        same_configs=[dict.fromkeys(("moshi_name", "mimi_name", "tokenizer_name", "dep_q", "delays"), REMOVED)],
        refused_configs=[
            *REFUSED_CONFIGS,
            ({"model_type": "moshi"}, "config.json: model_type: expected 'personaplex', got 'moshi'"),
            ({"dep_q": 8}, "config.json: dep_q: expected 16, one step each, got 8"),
            ({"context": 1}, "config.json: context: expected at least 2 rows, got 1"),
            (
                {"depformer_weights_per_step_schedule": [0] * 16},
                "depformer_weights_per_step_schedule: expected no value",
            ),
            ({"rope_concat": True}, "config.json: rope_concat: expected False, got True"),
            ({"depformer_pos_emb": "sin"}, "config.json: depformer_pos_emb: expected 'none', got 'sin'"),
            ({"lora": True}, "config.json: lora: expected False, got True"),
            ({"dim": 32}, f"voices.tgz: {FILE}: expected embeddings [n, 1, 1, 32]"),
        ],
        refused_inputs=[
            (live([{"role": "system", "text": "one two " * 1300}]), "messages[0].text: expected at most 2472 tokens"),
            *(
                (live([RECORDED], pcm), f"messages[0].audio: expected the recording of a voice of 1 to 30 s, got {got}")
                for pcm, got in ((PCM[:21_600], "0.90"), (np.tile(PCM, 25), "31.25 s"))
            ),
            (
                live([RECORDED], PCM * 0),
                "messages[0].audio: expected a recording of a voice, got silence: -120 dBFS",
            ),
            (live([RECORDED], PCM * np.nan), "pcm_in: expected"),
            *(
                (live([{"role": "system", "codes": codes}]), f"messages[0].codes: expected {expected}")
                for codes, expected in (
                    ([[1] * 13] * 7, "codes [8, n] in [0, 2048)"),
                    ([[2048] * 13] * 8, "codes [8, n] in [0, 2048)"),
                    ([[1] * 12] * 8, "the recording of a voice of"),
                )
            ),
            (live([{"role": "user", "text": "hello"}]), "text: expected only audio for task 'duplex'"),
            (live([{"role": "assistant", "text": "hello"}]), "messages[0].role: expected"),
            (live() | {"text": "You teach."}, "text: expected no value with options.live"),
            (live(pcm=PCM), "pcm_in: expected no value with options.live"),
            (live() | {"sample_rate": 24_000}, "sample_rate: expected no value without pcm_in"),
            (live(voice="alba"), "options.voice: expected one of natf0, natm1, varm4"),
            (live(guidance_scale="no"), "options.guidance_scale: expected"),
            (live(instruct="slowly"), "options.instruct: expected no value"),
            (live(resume_s=61), "options.resume_s: expected"),
            (
                live([{"role": "system", "codes": [[1] * 13] * 8}], voice="natm1"),
                "options.voice: expected no value, because",
            ),
        ],
        conformance={"vocabulary": SMALL_PERSONAPLEX.to_record(), "backbone": "llama"},
        conforms_by_night=True,
    )

    def test_checkpoint_keeps_release_parameters_and_voices(self, release: SmallRelease) -> None:
        record = config_at(release.checkpoint)
        assert record["sliding_window"] == CONFIG["context"] - 1
        vocabulary = PersonaPlexVocabulary.from_record(record[VOCABULARY])
        assert vocabulary.num_codebooks == 8
        assert vocabulary.depth.schedule == tuple(range(8))
        assert [(voice.name, voice.num_vectors) for voice in vocabulary.voices] == [
            (name.lower(), length - 1) for name, length in sorted(VOICES.items())
        ]
        assert release.family.voices == ("natf0", "natm1", "varm4")
        genders = [release.family.voice_details[name].gender for name in ("natf0", "natm1", "varm4")]
        assert genders == ["female", "male", "male"]
        table = release.weights["model.embed_tokens.weight"]
        assert release.weights["depth.layers.0.qkv_proj.weight"].shape == (8 * 3 * 32, 32)
        assert release.weights["depth.heads"].shape == (8, 2048, 32)
        assert len(table) == vocabulary.vocab_size == vocabulary.codes_end + sum(VOICES.values()) - 3
        for voice, vectors in read_voices(release.folder / ARCHIVE, MoshiVocabulary(), WIDTH):
            assert (table[list(vocabulary.vectors(voice.name))] == vectors).all()
        assert len(lm_shapes(PUBLISHED)) == 475  # tensors in the published file

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "voices.tgz: expected files NAME.pt, got none"),
            ({FILE: b"not a tensor"}, f"voices.tgz: {FILE}: expected tensors"),
            ({FILE: [1, 2]}, f"voices.tgz: {FILE}: expected embeddings of floating-point numbers and a cache of int64"),
            (
                {FILE: voice_record(more=torch.ones(1))},
                f"{FILE}: expected embeddings of floating-point numbers and a cache",
            ),
            (
                {FILE: voice_record(cache=torch.ones(1, 17, 4))},
                f"{FILE}: expected embeddings of floating-point numbers",
            ),
            (
                {FILE: voice_record(embeddings=torch.ones(3, WIDTH))},
                f"expected embeddings [n, 1, 1, {WIDTH}] with n in",
            ),
            (
                {FILE: voice_record(0)},
                f"expected embeddings [n, 1, 1, {WIDTH}] with n in [1, 1024), got [0, 1, 1, {WIDTH}]",
            ),
            (
                {FILE: voice_record(embeddings=torch.ones(3, 1, 1, WIDTH).to_sparse())},
                "expected embeddings of floating-point numbers",
            ),
            *(
                (
                    {FILE: voice_record(embeddings=torch.full((3, 1, 1, WIDTH), value))},
                    "embeddings: expected numbers of magnitude at most 10000",
                )
                for value in (math.nan, math.inf, -1e38, 1.1e4)
            ),
            (
                {FILE: voice_record(cache=torch.ones(1, 17, 5, dtype=torch.int64))},
                "expected a cache [1, 17, 4], got [1, 17, 5]",
            ),
            (
                {FILE: voice_record(cache=torch.full((1, 17, 4), 2049))},
                "cache: expected ids of stream 0 in [0, 96], got 2049",
            ),
            (
                {FILE: voice_record(cache=torch.full((1, 17, 4), -2))},
                "cache: expected ids of stream 0 in [0, 96], got -2",
            ),
            (
                {"voices/na-me.pt": voice_record()},
                "different names of letters, digits and underscores, got 'voices/na-me.pt'",
            ),
            (
                {"a/N.pt": voice_record(), "b/n.pt": voice_record()},
                "different names of letters, digits and underscores",
            ),
            ({"../N.pt": voice_record()}, "expected plain files in its own folders, got '../N.pt'"),
            ({"/N.pt": voice_record()}, "expected plain files in its own folders, got '/N.pt'"),
        ],
    )
    def test_malformed_voice_archive_is_refused_with_file_name(
        self, copied: SmallRelease, files: dict[str, Any], message: str
    ) -> None:
        write_archive(copied.folder / ARCHIVE, files)
        copied.assert_refused(message)

    def test_voice_pickle_with_executable_code_is_refused(self, copied: SmallRelease, tmp_path: Path) -> None:
        write_archive(copied.folder / ARCHIVE, {FILE: Executes(tmp_path / "created")})
        copied.assert_refused(f"voices.tgz: {FILE}: expected tensors")
        assert not (tmp_path / "created").exists()

    @pytest.mark.parametrize("link_type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_archive_with_links_or_devices_is_refused(self, copied: SmallRelease, link_type: bytes) -> None:
        with tarfile.open(copied.folder / ARCHIVE, "w:gz") as archive:
            member = tarfile.TarInfo(FILE)
            member.type = link_type
            member.linkname = "/etc/passwd"
            archive.addfile(member)
        copied.assert_refused(f"expected plain files in its own folders, got '{FILE}'")

    def test_oversized_truncated_or_missing_archive_is_refused(self, copied: SmallRelease) -> None:
        path = copied.folder / ARCHIVE
        whole = path.read_bytes()
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            member = tarfile.TarInfo(FILE)
            member.size = (64 << 20) + 1
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        copied.assert_refused("expected at most 1024 files of 67108864 bytes", f"got more at '{FILE}'")
        with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.GNU_FORMAT) as archive:
            archive.addfile(tarfile.TarInfo("n" * 2000))  # a header of any size precedes the file
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(voices, "MAX_BYTES", 1000)
            copied.assert_refused("expected a gzipped tar archive, got", "at most 1000 bytes in all")
        for content in (whole[: len(whole) // 2], b"no archive"):
            path.write_bytes(content)
            copied.assert_refused("voices.tgz: expected a gzipped tar archive, got")
        path.unlink()
        copied.assert_refused("voices.tgz is missing")
        path.symlink_to("/etc/passwd")
        copied.assert_refused("voices.tgz: expected a file of this release, got a link to /etc/passwd")


def test_non_voice_files_in_archive_are_ignored(tmp_path: Path) -> None:
    files = {"voices/README.md": b"voices", "voices/._NATF0.pt": b"of macOS", FILE: voice_record(2)}
    write_archive(tmp_path / "voices.tgz", files)
    ((voice, vectors),) = read_voices(tmp_path / "voices.tgz", MoshiVocabulary(), WIDTH)
    assert (voice.name, voice.num_vectors) == ("natf0", 2)
    assert vectors.shape == (2, WIDTH)
    # Row 2, whose undelayed streams carry frame 2, and row 3, whose delayed streams carry it, have id 1.
    assert voice.frames == ((0, 0, *[1] * 7, 0, *[1] * 7), (1,) * 17)


def test_invalid_personaplex_vocabulary_is_refused() -> None:
    record = PersonaPlexVocabulary().to_record()
    for changed in (
        {"codebook_size": 2008},
        {"delays": (0, *[7] * 7)},
        {"voices": [{"name": "a", "num_vectors": 0, "frames": []}]},
    ):
        with pytest.raises(Exception, match="expected"):
            PersonaPlexVocabulary.from_record(json.loads(json.dumps(record | changed)))
    assert np.array(PersonaPlexVocabulary().initial_ids).max() < PersonaPlexVocabulary().codes_end
