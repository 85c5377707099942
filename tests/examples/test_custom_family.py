"""Orpheus with SNAC (`examples/custom_family`), a family and codec outside of the package, installed with pip."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.releases.random_orpheus import CODES, SNAC, write_release, write_snac
from setup import PLUGINS
from stretto.codecs.base import Codec, Window, load_codec
from stretto.convert.command import main as convert
from stretto.convert.make_repository import profile
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.testing import assert_family_conforms
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from stretto.testing.reference import ReferenceModel
from stretto_client.markup import read_text
from tests.server.conftest import Server
from tests.server.published import check_sound
from tests.tiers import by_night

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "custom_family"
TAGS = "<laugh> <chuckle> <sigh> <cough> <sniffle> <groan> <yawn> <gasp>"


@dataclass(frozen=True)
class Environment:
    """Environment with the example package, which shares all other packages with this one."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder), "platbase": str(self.folder)}))

    def run(self, *words: str) -> str:
        """Run a `stretto` command in the environment and return its output."""
        line = [str(self.python), "-m", "stretto", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Create the environment, and make its packages importable in this process."""
    folder = tmp_path_factory.mktemp("orpheus_package")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    environment = Environment(folder / "env")
    venv.create(environment.folder, symlinks=True)
    borrowed = [
        sysconfig.get_path("purelib"),
        *(str(ROOT / each) for each in ("python_backend", "contract", "client", "gateway", *PLUGINS.values())),
    ]
    (environment.packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--quiet", "--no-index"]
    install += ["--no-deps", "--no-build-isolation", str(source)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(environment.packages)
        yield environment


@pytest.fixture(scope="module")
def codec_folder(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snac(tmp_path_factory.mktemp("snac") / "snac")


@pytest.fixture(scope="module")
def codec(codec_folder: Path) -> Codec:
    return load_codec("snac", codec_folder)


@pytest.fixture(scope="module")
def checkpoint(environment: Environment, codec_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a release with `stretto convert`; return the checkpoint's folder."""
    folder = tmp_path_factory.mktemp("orpheus")
    release = write_release(folder / "release")
    assert convert(command(release, codec_folder, folder / "converted")) == 0
    return folder / "converted"


def command(release: Path, codec: Path, out: Path) -> list[str]:
    given = {"--model": release, "--config": release / "config.json", "--tokenizer": release}
    words = given | {"--codec": codec, "--out": out}
    return ["orpheus", *(str(word) for pair in words.items() for word in pair)]


def test_snac_decoder_matches_the_authors(codec: Any) -> None:
    """The samples equal those of the snac package for equal weights and codes, with a cosine as noise."""
    recorded = np.load(ROOT / "tests" / "data" / "snac.npz")
    codes, noise = torch.from_numpy(recorded["codes"])[None], codec.noise.clone()
    sizes = [512 * steps for steps in codec.steps]
    codec.noise.copy_(torch.cat([torch.arange(size).cos() for size in sizes]))
    try:
        pcm = stream(codec.double(), codes, [codes.shape[2]])[0].numpy()
    finally:
        codec.float().noise.copy_(noise)
    assert codec.spec.samples_per_frame == 2048
    np.testing.assert_allclose(pcm, recorded["pcm"], atol=5e-5)  # the lengths of weights are multiplied in float32
    assert 0.05 < np.abs(pcm).max() < 0.9


def test_example_codec_decode_is_chunk_invariant(codec: Any) -> None:
    codec = codec.double()
    try:
        codes = random_codes(codec, 2, 12)
        whole = stream(codec, codes, [12])
        for sizes in (chunks_of(1, 12), chunks_of(5, 12)):
            assert (stream(codec, codes, sizes) - whole).abs().max() <= 1e-12
    finally:
        codec.float()


def test_noise_depends_on_the_position_not_the_batch(codec: Any) -> None:
    """Two windows in a batch have different positions; at one of them, the noise repeats."""
    codes, first = random_codes(codec, 2, 9), torch.tensor([3, 510])
    both, _ = codec.decode(Window(codes, 3, 3, first, codec.initial_state(2)))
    for index in range(2):
        alone, _ = codec.decode(Window(codes[index : index + 1], 3, 3, first[index : index + 1], torch.zeros(1, 0)))
        assert (alone[0] - both[index]).abs().max() <= 1e-6
    assert (both[0] - both[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attn_window_size": 32}, "attn_window_size: expected None, as in SNAC at 24 kHz, got 32"),
        ({"vq_strides": [8, 4, 2, 1]}, "vq_strides: expected .4, 2, 1."),
        ({"decoder_rates": [8, 0]}, "decoder_rates: expected positive integers"),
        ({"codebook_size": "48"}, "codebook_size: expected positive integers, got '48'"),
    ],
)
def test_incompatible_snac_config_is_refused(
    environment: Environment, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SNAC | changed))
    with pytest.raises(CheckpointError, match=message):
        load_codec("snac", tmp_path)


def test_example_release_converts_and_matches_the_published_prompt(checkpoint: Path) -> None:
    """The prompt equals the authors' prompt token by token, with a single begin of text."""
    family = family_at(checkpoint)
    assert (family.name, family.codec, family.num_codebooks, family.layout.codebook_size) == (
        "orpheus",
        "snac",
        7,
        CODES,
    )
    preprocessor = Preprocessor(checkpoint)
    prompt = preprocessor.prepare(RawRequest(text="so <laugh> it was", options='{"voice": "Leo"}'))
    spelled = {ids: name for name, ids in family.markers.items()}
    named = [spelled.get(token) for token in prompt.rows[:, 0].tolist()]
    assert named[:2] == ["human", "begin_of_text"]
    assert named[-4:] == ["end_of_turn", "end_of_human", "ai", "speech"]
    assert not any(named[2:-4])
    reader = preprocessor.template._subwords._tokenizer
    assert b"".join(map(reader.bytes_of, prompt.rows[2:-4, 0].tolist())) == b"leo: so <laugh> it was"
    assert prompt.sampling.audio.max_rows <= 7 * 171 == family.tasks[0].sampling.audio.max_rows
    told = json.loads(profile(family, 24000, family.frame_rate))
    assert told["tasks"][0]["max_speech_s"] == pytest.approx(171 * 2048 / 24000)
    shorter = preprocessor.prepare(RawRequest(text="so", options='{"max_audio_s": 1.0}'))
    assert shorter.sampling.audio.max_rows == 7 * 11
    spelled_out = preprocessor.prepare(RawRequest(text="<custom_token_3>")).rows[2:-4, 0]
    assert not set(spelled_out.tolist()) & set(family.markers.values()), "a marker in a text is text"
    with pytest.raises(InvalidRequest, match="text: expected text of at least one character"):
        preprocessor.prepare(RawRequest(text=" "))


async def test_emotion_tags_reach_the_model_unlike_other_markup(checkpoint: Path) -> None:
    preprocessor = Preprocessor(checkpoint)
    assert preprocessor.family.tags == tuple(TAGS.split())
    (read,) = await read_text(f"so **{TAGS}** <b>it</b> <hum>was", "auto", preprocessor.family.tags)
    assert read == f"so {TAGS} it was"
    rows = preprocessor.prepare(RawRequest(text=read)).rows[2:-4, 0].tolist()
    reader = preprocessor.template._subwords._tokenizer
    assert b"".join(map(reader.bytes_of, rows)).decode() == f"tara: so {TAGS} it was"


def test_example_release_voices_come_from_its_config(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    record = json.loads((folder / "config.json").read_text())

    def named(voices: Any) -> None:
        vocabulary = record["speech_vocabulary"] | {"voices": voices}
        (folder / "config.json").write_text(json.dumps(record | {"speech_vocabulary": vocabulary}))

    named(["pierre", "amélie", "marie"])
    preprocessor = Preprocessor(folder)
    assert preprocessor.family.voices == ("pierre", "amélie", "marie")
    rows = preprocessor.prepare(RawRequest(text="oui", options='{"voice": "Marie"}')).rows[2:-4, 0].tolist()
    reader = preprocessor.template._subwords._tokenizer
    assert b"".join(map(reader.bytes_of, rows)) == b"marie: oui"
    with pytest.raises(InvalidRequest, match=r"options.voice: expected one of pierre, amélie, marie, got 'tara'"):
        preprocessor.prepare(RawRequest(text="oui", options='{"voice": "tara"}'))
    names = "voices: expected names in lower case, of 1 to 40 letters"
    others = {"pierre": "voices: expected a valid array", (7,): r"voices\[0\]: expected a valid string"}
    for wrong, message in (dict.fromkeys(((), ("Pierre",), ("a: b",), ("a" * 41,)), names) | others).items():
        named(wrong)
        with pytest.raises(CheckpointError, match=message):
            family_at(folder)


@pytest.mark.parametrize("name", ["<custom_token_10>", "<|eot_id|>"])
def test_a_tokenizer_without_a_marker_is_refused(
    codec_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    release = write_release(tmp_path / "release")
    path = release / "tokenizer.json"
    path.write_text(path.read_text().replace(name, "<other>"))
    assert convert(command(release, codec_folder, tmp_path / "out")) == 1
    assert f"without {name}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.engine
@pytest.mark.parametrize("marks", ["not nightly and not engine", *by_night("engine")])
def test_example_passes_the_suite(environment: Environment, marks: str) -> None:
    """In a process of its own, as a third party runs it."""
    command = [str(environment.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks]
    folder = PACKAGE / "tests"
    done = subprocess.run(
        [*command, "--noconftest", "-c", os.devnull, f"--rootdir={folder}", str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_conformance_kit_refuses_an_uninstalled_family(environment: Environment, tmp_path: Path) -> None:
    from dataclasses import replace

    from stretto_orpheus import PLUGIN

    with pytest.raises(
        AssertionError, match=r"orpheus: expected this plug-in to be registered under its name in stretto\.families"
    ):
        assert_family_conforms(replace(PLUGIN, convert=None), tmp_path)


def test_core_does_not_mention_the_example_plugin_or_csm() -> None:
    own = ROOT / "python_backend" / "stretto" / "families" / "csm"
    sources = [
        path for folder in ("python_backend", "contract", "client", "gateway") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    for path in sources:
        names = "orpheus|snac" if path.is_relative_to(own) else "orpheus|snac|csm"
        assert not re.search(names, path.read_text(), re.IGNORECASE), path


@pytest.mark.server
@pytest.mark.nightly  # an environment, its commands and a server of its own
def test_example_family_is_installed_converted_and_served(
    environment: Environment, codec_folder: Path, tmp_path: Path
) -> None:
    """From pip to audio, the streamed audio equals a one-shot decode of the reference's codes."""
    assert re.search(r"family +orpheus +stretto-orpheus 0\.1\.0", environment.run("families"))
    release, checkpoint, repository = (tmp_path / name for name in ("release", "converted", "repository"))
    write_release(release)
    environment.run("convert", *command(release, codec_folder, checkpoint))
    environment.run("make-repository", "--checkpoint", str(checkpoint), "--out", str(repository))
    (checkpoint / "model.safetensors").symlink_to(next(checkpoint.glob("model-*.safetensors")))  # the reference's
    options = {"audio": {"temperature": 0.0, "max_rows": 80}, "output": {"codes": True}, "seed": 3, "voice": "dan"}
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text="hello world", options=json.dumps(options)))
    family = family_at(checkpoint)
    rows, _ = ReferenceModel(checkpoint, family, family.max_model_len).reply(prompt)
    num_frames = (len(rows) - 1) // 7
    starts = [ids.start for ids in family.layout.frame_codec.places]
    expected = np.array(rows[: 7 * num_frames]).reshape(num_frames, 7).T - np.array(starts)[:, None]
    server = Server(tmp_path, repository, python=environment.python)
    try:
        server.start()
        answer = server.ask(options, text="hello world")
    finally:
        server.stop()
    assert answer.error is None
    assert (num_frames, len(rows) - 1) == (11, 80), "the limit of 80 rows lies within a frame, which is dropped"
    np.testing.assert_array_equal(answer.codes, expected)
    check_sound(answer.pcm, expected, load_codec("snac", checkpoint), finish_reason="length")
