"""OpusLM and its dialogue model: conversion, prompts row by row, and replies of the release's own file.

Ids: sos 5; system 8, user 9, assistant 10; codec_ssl 34, text_bpe 35, spk 37; tasks from 64; semantic ids from 256,
those of codebook k from 276 + 12 k; text from 372.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lab.releases.random_espnet import Published
from stretto.encoders.xeus import CONFIG, FOLDER, WEIGHTS, load_ssl_tokenizer, read_centres
from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.errors import InvalidRequest
from stretto.families.opuslm import DIALOGUE
from stretto.families.opuslm.family import OpusVocabulary
from stretto.family.plugin import config_at
from stretto.family.text import SILENT, TextTokenizer
from stretto.preprocessing.request import RawRequest
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.testing.checkpoints import make_prompts
from stretto.testing.limits import asked, talk
from stretto.testing.releases import REMOVED, SmallRelease, assert_refused, edited
from stretto.testing.suite import ExpectedReply, FamilyCase
from tests import published_xeus
from tests.family_suite import FamilySuite
from tests.published_checkpoints import command, write_opuslm
from tests.reference import xeus as reference
from tests.reference.published import PublishedReference
from tests.reply_rows import chunks_in
from tests.small_vocabularies import SMALL_OPUSLM

LENGTH = 160  # rows of a request
CODES = np.array([[5, 6], *([stream, stream + 1] for stream in range(8))])  # [9, 2]
SEMANTIC_ZEROS = np.concatenate([[[3, 0, 0, 1]], np.zeros((8, 4), int)])
LONG = np.repeat([[0, 1]], [500, 200], 1) + np.zeros((9, 1), int)
HEARD = {"role": "user", "codes": CODES.tolist()}
GAP = np.zeros((8, 9), int)
FIRST = [256, *range(276, 372, 12)]
XEUS = "xeus/model/xeus_checkpoint_new.pth"
XEUS_CONFIG = "xeus/model/config.yaml"
FILES = ("config.yaml", "tokenizer", "backbone", "codec")


def published(release: SmallRelease) -> Published:
    folder = release.folder / "release"
    model = folder / ("2epoch.pth" if release.size == "dialogue" else "model.pth")
    return Published(model, *[folder / name for name in FILES])


def write(folder: Path, size: str) -> list[str]:
    """Write the dialogue model, which as published has the layers of Llama, or OpusLM with other layers."""
    is_dialogue = size == "dialogue"
    release = write_opuslm(folder / "release", SMALL_OPUSLM, "llama" if is_dialogue else size, is_dialogue, seed=3)
    words = command("opuslm-dialogue" if is_dialogue else "opuslm", release, folder)[:-2]
    return [*words, "--ssl-tokenizer", str(published_xeus.write_xeus(folder / "xeus"))]


def text(*ids: int) -> np.ndarray:
    """Return rows that carry `ids` on stream 0."""
    return np.pad(np.array(ids)[:, None], ((0, 0), (0, 8)))


def frames(codes: np.ndarray) -> np.ndarray:
    """Return the rows of codes [9, T], stream s trailing by s rows.

    Semantic code 0 becomes the pad as in training. ESPnet's `SpeechLMPreprocessor`: where(value == pad, pad, value +
    bias); codes of the codec never are 0 there, where those of the first codebook begin at 5000.
    """
    num_frames = codes.shape[1]
    rows = np.zeros((num_frames + 8, 9), int)
    for stream, first in enumerate(FIRST):
        rows[stream : stream + num_frames, stream] = first + codes[stream]
    rows[:num_frames, 0][codes[0] == 0] = 0
    return rows


def voice(codes: np.ndarray) -> np.ndarray:
    """Return the rows of a voice of at most 500 frames."""
    rows = frames(codes[:, :500])
    return np.concatenate([text(37), rows, np.zeros((508 - len(rows), 9), int)])


def speech(seconds: float) -> np.ndarray:
    """Return samples at 16 kHz that are exact in 16 bits."""
    times = np.arange(round(16_000 * seconds)) / 16_000
    noise = np.random.default_rng(4).standard_normal(len(times))
    pcm = 0.2 * np.sin(2 * np.pi * (150 + 600 * times) * times) + 0.05 * noise
    return (np.round(pcm * 32768) / 32768).astype(np.float32)


def codes_by_hand(pcm: np.ndarray, release: SmallRelease) -> np.ndarray:
    """Return nine streams: the reference features' nearest centres and the codec's codes, cut to equal length."""
    features = reference.features(pcm, published_xeus.published_tensors(), published_xeus.CONFIG)
    semantic = reference.distances(features, read_centres(published_xeus.KMEANS)).argmin(1)
    acoustic = release.preprocessor.codec.encode(pcm)
    assert acoustic.shape[1] == len(semantic) + 1, "the codec hears a frame more"
    return np.concatenate([semantic[None], acoustic[:, : len(semantic)]])


def wav(pcm: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, pcm, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def written(release: SmallRelease, said: str) -> np.ndarray:
    """Return the rows of a text with its marker."""
    return text(35, *(372 + np.array(TextTokenizer.at(release.checkpoint).encode(said))))


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    pcm = speech(0.61)
    heard = frames(codes_by_hand(pcm, release))
    expected = dialogue_prompts(release) if release.size == "dialogue" else base_prompts(release)
    spoken = {"pcm_in": pcm, "sample_rate": 16_000, "task": "asr"}
    asking = (
        (text(5, 89, 9, 34), heard, text(9, 35)) if release.size == "dialogue" else (text(5, 80, 34), heard, text(35))
    )
    expected |= {"spoken": (spoken, asking), "file": ({"audio": wav(pcm), "task": "asr"}, asking)}
    return {name: (inputs, np.concatenate(rows)) for name, (inputs, rows) in expected.items()}


Expected = dict[str, tuple[dict[str, Any], tuple[np.ndarray, ...]]]


def base_prompts(release: SmallRelease) -> Expected:
    said = written(release, "a man")
    speaker = {"role": "system", "codes": CODES.tolist()}
    return {
        "tts": (asked("a man"), (text(5, 82), said, GAP, text(34))),
        "voice": (talk(speaker, {"role": "user", "text": "a man"}), (text(5, 81), said, GAP, voice(CODES), text(34))),
        "asr": (talk(HEARD) | {"task": "asr"}, (text(5, 80, 34), frames(CODES), text(35))),
        "text_lm": (asked("a man") | {"task": "text_lm"}, (text(5, 64), said)),
        "audio_lm": (talk(HEARD) | {"task": "audio_lm"}, (text(5, 83, 34), frames(CODES)[:2])),
    }


def dialogue_prompts(release: SmallRelease) -> Expected:
    man = {"role": "user", "text": "a man"}
    well = {"role": "user", "text": "well"}
    fine = {"role": "assistant", "text": "fine"}
    said_man, said_well, said_fine = (written(release, said) for said in ("a man", "well", "fine"))
    pcm = speech(0.4)
    other = codes_by_hand(pcm, release)
    codes = codes_by_hand(speech(0.61), release)
    heard = frames(CODES)

    def speaker(codes: np.ndarray) -> dict[str, Any]:
        return {"role": "system", "codes": codes.tolist()}

    reply = (text(10), said_fine, GAP, text(10, 34), heard)
    first = (text(5, 89, 9), said_man, GAP)
    return {
        "audio": (talk(HEARD) | {"task": "dialogue"}, (text(5, 89, 9, 34), heard, text(10, 35))),
        "zeros": (
            talk(speaker(SEMANTIC_ZEROS), HEARD | {"codes": SEMANTIC_ZEROS.tolist()}) | {"task": "dialogue"},
            (text(5, 89, 8), voice(SEMANTIC_ZEROS), text(9, 34), frames(SEMANTIC_ZEROS), text(10, 35)),
        ),
        "voice": (
            talk(speaker(LONG), HEARD | {"text": "a man"}) | {"task": "dialogue"},
            (text(5, 89, 8), voice(LONG), text(9, 34), heard, text(9), said_man, GAP, text(10, 35)),
        ),
        "earlier turns": (
            talk(man, fine | {"codes": CODES.tolist()}, well) | {"task": "dialogue"},
            (*first, *reply, text(9), said_well, GAP, text(10, 35)),
        ),
        "text_dialogue": (
            talk({"role": "system", "text": "well"}, man) | {"task": "text_dialogue"},
            (text(5, 88, 8), said_well, GAP, text(9), said_man, GAP, text(10, 35)),
        ),
        "speak": (talk(man, fine) | {"task": "speak"}, (*first, text(10), said_fine, GAP, text(10, 34))),
        "spoken voice": (
            talk({"role": "system", "audio": "audio"}, {"role": "user", "audio": "pcm_in"})
            | {"task": "dialogue", "audio": wav(speech(0.61)), "pcm_in": pcm, "sample_rate": 16_000},
            (text(5, 89, 8), voice(codes), text(9, 34), frames(other), text(10, 35)),
        ),
    }


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    oracle = PublishedReference(published(release), release.family, LENGTH)
    return oracle.expected(make_prompts(release.family, 8))


def swap(names: list[Any], first: int, second: int) -> None:
    names[first], names[second] = names[second], names[first]


def turn_words(record: dict[str, Any]) -> None:
    """Give the words of a tokenizer other ids, as SmolLM2's repository does, whose tokenizer has as many tokens."""
    words = list(record["model"]["vocab"])
    record["model"]["vocab"] = dict(zip(words, [*range(1, len(words)), 0], strict=True))


def codes_turn(shape: tuple[int, int], code: int = 0) -> dict[str, Any]:
    return talk({"role": "user", "codes": np.full(shape, code).tolist()}) | {"task": "asr"}


class TestOpusLM(FamilySuite):
    case = FamilyCase(
        DIALOGUE,
        write,
        sizes=("dialogue", "olmo2"),
        config="release/config.yaml",
        weights="release/2epoch.pth",
        tokenizer="release/tokenizer/tokenizer.json",
        may_be_sharded=False,
        unneeded_tensors=("criterion.lm_head.weight", "reflm.corelm.emb.weight", "corelm.decoders.lm_head.weight"),
        refused_configs=[
            ({"token_bias": REMOVED}, "config.yaml: token_bias is missing"),
            ({"token_bias.codec": REMOVED}, "config.yaml: token_bias.codec is missing"),
            ({"token_bias.ssl": 256}, "token_bias.ssl: expected [first, end) of 432"),
            ({"token_bias.ssl": ["a", "b"]}, "token_bias.ssl: expected [first, end) of 432"),
            ({"token_bias.codec": [276, 371]}, "expected a multiple of 8 codes, got 95"),
            ({"token_bias.text_bpe": [400, 432]}, "expected the tokenizer small/tokenizer with at most 32 tokens"),
            ({"codec_token_in_use": 8}, "codec_token_in_use: expected 9, got 8"),
            ({"transformer_conf.n_ctx": "long"}, "backbone: invalid parameters for llama"),
        ],
        refused_edits=[
            (
                "release/config.yaml",
                lambda record: swap(record["token_list"], 5, 6),
                "expected <sos/eos> at index 5, got <local_sos/eos>",
            ),
            (
                "release/config.yaml",
                lambda record: swap(record["token_list"], 9, 10),
                "expected <user_input> at index 9, got <assistant_output>",
            ),
            (
                "release/config.yaml",
                lambda record: swap(record["token_list"], 34, 300),
                "missing <codec_ssl_start/end>",
            ),
            (
                "release/config.yaml",
                lambda record: record["token_list"].append("<more>"),
                "corelm.emb.weight [432, 64] instead of [433, 64]",
            ),
            (
                "release/2epoch.pth",
                lambda tensors: tensors.update({"corelm.head_emb.weight": torch.zeros(8, 64)}),
                "[8, 64] instead of [9, 64]",
            ),
            (
                "release/tokenizer/tokenizer.json",
                turn_words,
                "expected the tokenizer small/tokenizer; 53 of 56 tokens have other ids",
            ),
            ("release/backbone/config.json", lambda record: record.update(model_type="olmo"), "'qwen3'], got 'olmo'"),
            (XEUS, lambda tensors: tensors.pop("encoder.encoders.1.merge_proj.bias"), "missing: encoder.encoders.1."),
            (XEUS, lambda tensors: tensors.update(odd=torch.zeros(1)), "unknown: odd"),
            (
                XEUS,
                lambda tensors: tensors.update({"frontend.layers.2.conv.weight": torch.zeros(12, 12, 4)}),
                "wrong shape: frontend.layers.2.conv.weight [12, 12, 4] instead of [12, 12, 3]",
            ),
            (
                XEUS_CONFIG,
                lambda record: record["encoder_conf"].update(merge_conv_kernel=30),
                "expected odd kernels",
            ),
            (
                XEUS_CONFIG,
                lambda record: record["encoder_conf"].update(pos_enc_layer_type="abs_pos"),
                "encoder_conf.pos_enc_layer_type: expected 'conv', got 'abs_pos'",
            ),
            (
                XEUS_CONFIG,
                lambda record: record["preencoder_conf"].update(output_size=16),
                "preencoder_conf.output_size: expected 32, the encoder's width, got 16",
            ),
        ],
        edits_by_night=[
            (
                XEUS_CONFIG,
                lambda record: record["encoder_conf"].update(attention_heads=5),
                "expected a width of whole heads",
            ),
            (XEUS_CONFIG, lambda record: record["frontend_conf"].update(shapes=[]), "expected positive integers"),
            *(
                ("xeus/model", lambda folder, name=name: (folder / name).unlink(), name)
                for name in ("config.yaml", "xeus_checkpoint_new.pth", "km_opus_lm.mdl")
            ),
        ],
        prompts=prompts,
        refused_inputs=[
            (codes_turn((8, 3)), "messages[0].codes: expected 9 streams, got 8 streams"),
            (codes_turn((9, 1), 12), "messages[0].codes[1]: expected codes in [0, 12), got 12"),
            (codes_turn((9, 1), 20), "messages[0].codes[0]: expected codes in [0, 20), got 20"),
            (codes_turn((9, 1501)), "messages[0].codes: expected at most 1500 frames (30 s)"),
            (
                {"pcm_in": speech(399 / 16_000), "sample_rate": 16_000, "task": "asr"},
                "pcm_in: expected audio of at least one frame (0.025 s), got 399",
            ),
        ],
        replies=replies,
        engine={"max_model_len": LENGTH},
        tight={"num_gpu_blocks_override": 6, "max_num_seqs": 8},
    )

    def test_tensors_have_their_expected_names(self, releases: dict[str, SmallRelease]) -> None:
        renamed = {"corelm.emb.weight": "model.embed_tokens.weight", "corelm.lm_head.weight": "lm_head.weight"}
        for release in releases.values():
            stored = torch.load(published(release).model, weights_only=True)
            tensors = {
                renamed.get(name, name.removeprefix("corelm.decoders.")): tensor
                for name, tensor in stored.items()
                if name not in self.case.unneeded_tensors
            }
            bias = tensors.pop("corelm.head_emb.weight")
            assert bias.shape[0] == 12
            assert bias[0].any()
            tensors["stream_bias.weight"] = bias[:9]
            assert release.weights.keys() == tensors.keys()
            assert all(torch.equal(release.weights[name], tensor) for name, tensor in tensors.items())

    def test_config_has_the_trained_length_and_ids(self, releases: dict[str, SmallRelease]) -> None:
        """The length is ESPnet's `n_ctx`, not the backbone's."""
        for size, architecture, eps in (("dialogue", "Llama", 1e-5), ("olmo2", "Olmo2", 1e-6)):
            record = config_at(releases[size].checkpoint)
            assert record["architectures"] == [f"Stretto{architecture}ForCausalLM"]
            assert record["rms_norm_eps"] == eps
            assert record["max_position_embeddings"] == 1024
            assert record["tie_word_embeddings"] is False
            assert record["speech_vocabulary"] == json.loads(json.dumps(SMALL_OPUSLM.to_record()))

    def test_length_without_n_ctx_is_that_of_espnet(self, copied: SmallRelease) -> None:
        with edited(copied.folder / "release/config.yaml") as record:
            del record["transformer_conf"]["n_ctx"]
        assert config_at(copied.checkpoint)["max_position_embeddings"] == 8192

    def test_model_trained_in_bfloat16_is_written_so(self, copied: SmallRelease) -> None:
        """Its file is stored in float32; its config.yaml gives the training dtype."""
        with edited(copied.folder / "release/config.yaml") as record:
            record["ds_config_dict"]["bf16"]["enabled"] = True
        head = torch.load(published(copied).model, weights_only=True)["corelm.lm_head.weight"]
        assert torch.equal(copied.weights["lm_head.weight"], head.to(torch.bfloat16))
        assert config_at(copied.checkpoint)["dtype"] == "bfloat16"

    def test_tokens_called_by_number_are_not_compared(self, copied: SmallRelease) -> None:
        with edited(copied.folder / "release/config.yaml") as record:
            record["token_list"][372:] = [f"<text_bpe_{token_id}>" for token_id in range(60)]
        assert copied.family.name == "opuslm_dialogue"

    def test_task_ids_are_those_of_the_release(self, releases: dict[str, SmallRelease], tmp_path: Path) -> None:
        """Newer ESPnet releases number tasks from 64 without gaps, and have no plain text-to-speech."""
        release = releases["olmo2"].copied(tmp_path / "published")
        tasks = ("textlm", "codec_ssl_audiolm", "asr", "codec_ssl_tts", "text_dialogue", "audio_dialogue")
        with edited(release.folder / "release/config.yaml") as record:
            names = record["token_list"]
            names[64:128] = [f"<unused_token_{token_id}>" for token_id in range(64, 128)]
            names[64:70] = [f"<{task}_task>" for task in tasks]
        assert config_at(release.checkpoint)["speech_vocabulary"]["tasks"]["audio_dialogue"] == 69
        prompt = release.preprocessor.prepare(RawRequest(**talk(HEARD), task="asr"))
        assert prompt.rows[1, 0] == 66
        with pytest.raises(InvalidRequest, match="task: expected a task for which this checkpoint has a token, got"):
            release.preprocessor.prepare(RawRequest(**asked("a")))

    def test_only_a_continued_recording_has_a_delayed_tail(self, releases: dict[str, SmallRelease]) -> None:
        prepare = releases["olmo2"].preprocessor.prepare
        continued = prepare(RawRequest(**talk(HEARD), task="audio_lm"))
        assert continued.delayed_tail is not None
        assert continued.delayed_tail.tolist() == frames(CODES)[2:, 1:].tolist()
        assert prepare(RawRequest(**asked("a"))).delayed_tail is None
        assert prepare(RawRequest(**asked("a"), task="text_lm")).delayed_tail is None

    def test_release_without_an_audio_tokenizer_takes_only_codes(
        self, copied: SmallRelease, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copied = replace(copied, arguments=copied.arguments[:-2])
        assert not (copied.checkpoint / FOLDER).exists()
        assert "the server will accept audio only as codes (--ssl-tokenizer)" in capsys.readouterr().out
        heard = {"role": "user", "audio": "pcm_in"}
        for task, turns in (
            ("asr", [heard]),
            ("dialogue", [heard | {"role": "system"}, {"role": "user", "text": "a"}]),
        ):
            inputs = talk(*turns) | {"task": task, "pcm_in": speech(0.5), "sample_rate": 16_000}
            with pytest.raises(InvalidRequest, match=r"audio: expected codes \[9\]\[T\] in messages, because the"):
                copied.preprocessor.prepare(RawRequest(**inputs))

    def test_audio_tokenizer_is_written(self, copied: SmallRelease, capsys: pytest.CaptureFixture[str]) -> None:
        num_codes = len(copied.family.layout.audio[0])
        said = capsys.readouterr().out
        assert load_ssl_tokenizer(copied.checkpoint, num_codes) is not None
        files = sorted(path.name for path in (copied.checkpoint / FOLDER).iterdir())
        assert files == [CONFIG, WEIGHTS]
        assert all(f"  {FOLDER}/{name}  " in said for name in files), "their sums are printed"
        assert "not needed: util_modules.mask.mask_embedding" in said
        assert "only as codes" not in said

    def test_audio_tokenizer_of_either_version_is_converted(self, release: SmallRelease, copied: SmallRelease) -> None:
        """From its folder or the one above it; the newer of two is converted."""
        model = copied.folder / "xeus/model"
        torch.save({"odd": torch.zeros(1)}, model / "xeus_checkpoint_old.pth")
        both = copied.copied(copied.folder.with_name("both"))
        (model / "xeus_checkpoint_new.pth").unlink()
        tensors = published_xeus.old_names(published_xeus.published_tensors())
        (model / "xeus_checkpoint_old.pth").unlink()
        torch.save(tensors, model / "xeus_checkpoint_old.pth")
        old = replace(copied, arguments=[*copied.arguments[:-1], str(model)])
        expected = load_file(release.checkpoint / FOLDER / WEIGHTS)
        for other in (both, old):
            written_tensors = load_file(other.checkpoint / FOLDER / WEIGHTS)
            assert written_tensors.keys() == expected.keys()
            assert all(torch.equal(written_tensors[name], tensor) for name, tensor in expected.items())

    def test_centroids_of_another_number_are_refused(self, tmp_path: Path) -> None:
        record = SMALL_OPUSLM.to_record() | {"ssl": (256, 275), "codec": 275, "text": (371, 431), "vocab_size": 431}
        published_files = write_opuslm(tmp_path / "release", OpusVocabulary.from_record(record))
        xeus = published_xeus.write_xeus(tmp_path / "xeus")
        words = [*command("opuslm", published_files, tmp_path)[:-2], "--ssl-tokenizer", str(xeus)]
        assert_refused(words, tmp_path / "out", "km_opus_lm.mdl: expected 19 centroids of 32, got [20, 32]")

    def test_files_are_assigned_to_turns_in_order(self, release: SmallRelease) -> None:
        heard = [speech(seconds) for seconds in (0.3, 0.4, 0.5, 0.6)]
        codes = [codes_by_hand(pcm, release).tolist() for pcm in heard]
        roles = ("system", "user", "user", "user")
        inputs = ("audio", "audio", "pcm_in", "audio")
        prepare = release.preprocessor.prepare
        turns = talk(*({"role": role, "codes": stream} for role, stream in zip(roles, codes, strict=True)))
        expected = prepare(RawRequest(**turns, task="asr"))
        turns = talk(*({"role": role, "audio": name} for role, name in zip(roles, inputs, strict=True)))
        spoken: dict[str, Any] = {**turns, "task": "asr", "pcm_in": heard[2], "sample_rate": 16_000}
        files = tuple(wav(pcm) for pcm, name in zip(heard, inputs, strict=True) if name == "audio")
        assert np.array_equal(prepare(RawRequest(**spoken, audio=files)).rows, expected.rows)
        with pytest.raises(InvalidRequest, match=r"audio: expected one file per turn with audio, 3, got 2 files"):
            prepare(RawRequest(**spoken, audio=files[:2]))
        with pytest.raises(InvalidRequest, match=r"audio\[2\]: expected a readable wav, flac, ogg, mp3, aiff, caf"):
            prepare(RawRequest(**spoken, audio=(*files[:2], b"RIFF")))

    def test_reply_sent_back_reproduces_its_rows(self, release: SmallRelease) -> None:
        """The next turn therefore finds all of them in the prefix cache, up to the reply's last frame."""
        family = release.family

        def write_turns(*turns: Mapping[str, Any], task: str = "dialogue") -> list[list[int]]:
            return release.preprocessor.prepare(RawRequest(**talk(*turns), task=task)).rows.tolist()

        asking = write_turns(HEARD)
        spoken = frames(CODES).tolist()
        words = written(release, "fine").tolist()[1:]
        reply = [*words, *text(*([0] * 8), 10, 34).tolist(), *spoken[:2]]
        assert reply[len(words) : -2] == text(0, *family.transition).tolist()
        fine = {"role": "assistant", "text": "fine"}
        assert write_turns(HEARD, fine, task="speak") == [*asking, *reply[:-2]]
        last = [5, *spoken[2][1:]]  # the end is drawn at the place of the third frame
        drained = [[256, *row[1:]] for row in spoken[3:]] + [[256] + [276 + 12 * k for k in range(8)]]
        begun = ReplyState.begin(SegmentRules(family, 1024), family.task("dialogue"), len(asking))
        speaker = Utterance(begun, (), SILENT, Pacer(ChunkPolicy(1, 1)), with_codes=True)
        rows = [np.array([[NO_CHANGE, *row]]) for row in [*reply, last, *drained]]
        chunks = [chunk for row in rows for chunk in chunks_in(speaker, row)]
        sent = np.concatenate([np.array(chunk.chunk.output_codes) for chunk in chunks if chunk.chunk.output_codes], 1)
        assert np.array_equal(sent, CODES)
        following = write_turns(HEARD, fine | {"codes": sent.tolist()}, {"role": "user", "text": "well"})
        assert following[: len(asking) + len(reply)] == [*asking, *reply]
