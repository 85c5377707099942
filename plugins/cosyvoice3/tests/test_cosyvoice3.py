"""CosyVoice 3 equals the authors' code: prompts, and codes of replies, also if the text arrives word by word.

Named voices of a release are read safely, and speak like a recording.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from plugins.cosyvoice3.lab.random_cosyvoice3 import KNOWN, NARROW, SEEDS, recording, voice, write_release
from plugins.cosyvoice3.tests.cosyvoice3_release import LIVE, REPLIES, codes_of, prompt_of, write_with_head, written
from stretto.engine.frame_codes import FrameCodes
from stretto.errors import CheckpointError, InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.sampling import CodeSampling
from stretto.testing.checkpoints import make_prompt
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase
from stretto_cosyvoice3 import PLUGIN
from stretto_cosyvoice3.codec import load
from stretto_cosyvoice3.convert import DROPPED, EMBEDDINGS
from stretto_cosyvoice3.family import FILL, SOS, TASK, CosyVoice3Vocabulary, build
from stretto_cosyvoice3.mechanism.reference import Codes
from stretto_cosyvoice3.voices import FOLDER, NAMED, SPEAKER, TOKENIZER, read_named_voices
from tests.family_suite import FamilySuite

TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 11,
    "max_model_len": 192,
}
MODEL = "release/llm.pt"
TEXT_IDS = [5, 6, KNOWN.end_of_prompt, 7, 8, 9]
CONFORMING = CosyVoice3Vocabulary(64, num_codes=150, num_speech_ids=156, end_of_prompt=3, quiet=(1,), max_model_len=256)


def write(folder: Path, size: str) -> list[str]:
    return ["cosyvoice3", "--model", str(write_release(folder / "release", int(size)))]


def spoken(pcm: np.ndarray | None, text: str = "Hello.", words: str = "", **options: Any) -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording with these words."""
    turn = {"audio": "pcm_in", "text": words} if words else None
    return asked(text, turn, pcm, **options)


def ask(preprocessor: Preprocessor, *arguments: Any, **options: Any) -> Any:
    return preprocessor.prepare(RawRequest(**spoken(*arguments, **options)))


def assert_codes(reply: Mapping[str, Any], rows: np.ndarray) -> None:
    """Assert that a reply to streamed text has the authors' codes, of which their loop may cut the last ones."""
    codes = codes_of(rows.tolist())
    is_cut = reply["rows"] + 1 >= reply["limit"]
    assert (codes[: len(reply["codes"])] if is_cut else codes) == reply["codes"]


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """Return replies to whole texts, and to texts that are streamed into the reply."""
    first = KNOWN.codes.start
    expected = dict[str, ExpectedReply]()
    for number, reply in enumerate(reply for reply in (*REPLIES, *LIVE) if str(reply["release"]) == release.size):
        prompt = prompt_of(release.checkpoint, reply)
        rows = [[first + code] for code in reply["codes"]] + [[release.family.end_of_reply]]
        is_live = "live" in reply
        expected[f"r{number}"] = ExpectedReply(prompt, partial(assert_codes, reply) if is_live else rows)
    return expected


def replace_text(old: str, new: str) -> Callable[[Path], None]:
    """Return an edit of cosyvoice3.yaml."""

    def edit(folder: Path) -> None:
        path = folder / "cosyvoice3.yaml"
        text = path.read_text().replace(old, new)
        path.unlink()
        path.write_text(text)

    return edit


def edit_network(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """Return an edit of the speaker network."""

    def write_network(folder: Path) -> None:
        model = onnx.load(str(folder / SPEAKER))
        edit(model)
        (folder / SPEAKER).unlink()
        (folder / SPEAKER).write_bytes(model.SerializeToString())

    return write_network


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def named(**changed: Any) -> dict[str, torch.Tensor]:
    """Return a voice of 40 codes as the authors' code stores it, with some tensors changed."""
    tokens_, mel, x_vector = voice(3, 40)
    stored: dict[str, Any] = {
        "prompt_text": torch.tensor([TEXT_IDS], dtype=torch.int32),
        "flow_prompt_speech_token": torch.from_numpy(tokens_)[None],
        "prompt_speech_feat": torch.from_numpy(mel)[None],
        "flow_embedding": torch.from_numpy(x_vector)[None],
    }
    lengths = {
        f"{name}_len": torch.tensor([tensor.shape[1]]) for name, tensor in stored.items() if name != "flow_embedding"
    }
    return stored | lengths | {"llm_embedding": stored["flow_embedding"]} | changed


def write_voices(voices: Any) -> Callable[[Path], None]:
    """Return an edit that writes `spk2info.pt`."""
    return lambda folder: torch.save(voices, folder / "spk2info.pt")


def write_text(folder: Path) -> None:
    (folder / SPEAKER).unlink()
    (folder / SPEAKER).write_text("text")


class Harmful:
    """Object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("harm",))


def infinite(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.full(shape, float("inf"))


def in_a_list(model: onnx.ModelProto) -> None:
    """Hide a tensor with external data in a node's attribute."""
    hidden = model.graph.node[0].attribute.add(name="hidden", type=onnx.AttributeProto.TENSORS).tensors.add()
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/passwd")


def sparse(model: onnx.ModelProto) -> None:
    """Hide a tensor with external data among the sparse tensors."""
    values = model.graph.sparse_initializer.add().values
    values.name = "hidden"
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="/etc/passwd")


REFUSED_VOICES: tuple[tuple[Any, str], ...] = (
    ({"a": Harmful()}, "expected named voices, got"),
    ([named()], "expected at most 256 voices by name, got list"),
    ({f"v{index}": 0 for index in range(257)}, "expected at most 256 voices by name, got 257"),
    ({"Anna": named(), "anna": named()}, "expected names that differ in lower case"),
    ({5: named()}, "expected names of 1 to 64 printable characters, got 5"),
    ({"a\x1b[2J": named()}, "expected names of 1 to 64 printable characters"),
    ({"a": torch.ones(1)}, "a: prompt_text: expected a tensor of one recording, got NoneType"),
    ({"a": named(prompt_text=torch.ones(1, 5))}, "a: prompt_text: expected dense ids, got torch.float32"),
    ({"a": named(prompt_text=torch.ones(2, 5).int())}, "a tensor of one recording, got shape [2, 5]"),
    (
        {"a": named(prompt_text=torch.tensor([[1, 2]]))},
        "<|endofprompt|> once, after the instruction, got it 0 times",
    ),
    ({"a": named(prompt_text=torch.tensor([[10**6]]))}, "prompt_text: expected ids in [0, "),
    (
        {"a": named(flow_prompt_speech_token=torch.full((1, 40), 6561))},
        "expected ids in [0, 6561), got 6561 ... 6561",
    ),
    ({"a": named(flow_prompt_speech_token=torch.zeros(1, 24).int())}, "got 24 codes and 80 frames"),
    ({"a": named(prompt_speech_feat=torch.ones(1, 79, 80))}, "got 40 codes and 79 frames"),
    ({"a": named(prompt_speech_feat=infinite((1, 80, 80)))}, "prompt_speech_feat: expected 80 columns of numbers"),
    ({"a": named(prompt_speech_feat=torch.full((1, 80, 80), -1e38))}, "numbers of magnitude at most 10000"),
    ({"a": named(flow_embedding=torch.ones(1, 191))}, "flow_embedding: expected 192 columns of numbers"),
    ({"a": named(flow_embedding=torch.ones(1, 192).to_sparse())}, "flow_embedding: expected dense numbers"),
)


class TestCosyVoice3(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=tuple(map(str, SEEDS)),
        weights=MODEL,
        tokenizer="release/CosyVoice-BlankEN/tokenizer.json",
        may_be_sharded=False,
        unneeded_tensors=DROPPED,
        refused_edits=[
            (
                MODEL,
                lambda t: t.update({"speech_embedding.weight": torch.ones(6564, 64)}),
                "expected CosyVoice 3 with 6761 speech ids, got 6564",
            ),
            (
                "release/flow.pt",
                lambda t: t.pop("decoder.estimator.proj_out.bias"),
                "missing: flow.decoder.estimator.proj_out.bias",
            ),
            (
                "release",
                lambda folder: (folder / "cosyvoice3.yaml").rename(folder / "cosyvoice2.yaml"),
                "got cosyvoice2.yaml",
            ),
            ("release", replace_text("chunk_size: 25", "chunk_size: 20"), "chunk_size: expected 25, got 20"),
            ("release", replace_text("    nb_harmonics: 8\n", ""), "hift.nb_harmonics is missing"),
            ("release", lambda folder: (folder / TOKENIZER).unlink(), f"{TOKENIZER} is missing"),
            ("release", write_text, "expected an ONNX model"),
            ("release", edit_network(elsewhere), "expected weights in the file itself"),
            (
                "release",
                edit_network(lambda model: model.opset_import.append(helper.make_opsetid("evil", 1))),
                "expected operators of ONNX, got those of evil",
            ),
            *(("release", write_voices(voices), message) for voices, message in REFUSED_VOICES),
        ],
        edits_by_night=[
            ("release/hift.pt", lambda t: t.update(more=torch.ones(1)), "unknown: hift.more"),
            ("release", replace_text("top_p: 0.8", "top_p: 0.9"), "llm.sampling.top_p: expected 0.8, got 0.9"),
            ("release", edit_network(in_a_list), "expected weights in the file itself"),
            ("release", edit_network(sparse), "expected weights in the file itself"),
        ],
        has_usual_requests=False,
        refused_inputs=[
            (asked("Hello."), "messages: expected a system turn with audio"),
            (spoken(recording(0.9)), "messages[0].audio: expected at least 1 s, got 0.9000 s"),
            (
                spoken(np.zeros(48_000, np.float32)),
                "messages[0].audio: expected a recording of a voice, got silence",
            ),
            (spoken(recording(31)), "pcm_in: expected at most 30 s"),
            (
                spoken(recording(), "a<|endofprompt|>b"),
                "messages[1].text: expected none of the model's markers, got <|endofprompt|>",
            ),
            (spoken(recording(), "  "), "messages[1].text: expected text of at least one character"),
            (spoken(recording(), "a" * 501), "messages[1].text: expected at most 500 characters, got 501"),
            (
                spoken(recording(), "Hi", instruct="a<|im_end|>"),
                "options.instruct: expected none of the model's markers",
            ),
            (spoken(recording(), "Hi", voice="anna"), "options.voice: expected no"),
            (spoken(recording(), "Hi", language="ja"), "options.language: expected no value"),
        ],
        replies=replies,
        engine={"max_model_len": 192},
        tight=TIGHT,
        conformance={
            "vocabulary": CONFORMING.to_record(),
            "write": write_with_head,
            "num_prompts": 14,
            "hidden": 64,
            "layers": 2,
        },
        conforms_by_night=True,
    )

    @pytest.mark.parametrize("reply", REPLIES[: len(REPLIES) // 2], ids=lambda reply: reply["text"])
    def test_prompts_match_the_authors(self, release: SmallRelease, reply: dict[str, Any]) -> None:
        codes = np.random.default_rng(reply["num_codes"]).integers(KNOWN.num_codes, size=reply["num_codes"])
        heard = (codes + KNOWN.num_text_ids).tolist() if reply["words"] and not reply["instruct"] else []
        prompt = written(release.checkpoint, reply)
        assert prompt.rows[:, 0].tolist() == [
            KNOWN.ends[SOS],
            *reply["prompt"],
            *reply["ids"],
            KNOWN.ends[TASK],
            *heard,
        ]
        assert (prompt.min_rows, prompt.max_rows) == (2 * len(reply["ids"]), 20 * len(reply["ids"]))
        assert prompt.sound is not None
        np.testing.assert_array_equal(prompt.sound.arrays()[0], codes[len(codes) % 25 :])

    def test_cosyvoice3_recording_prompts_both_model_and_decoder(self, release: SmallRelease) -> None:
        pcm = recording(2.3)
        prompt = ask(release.preprocessor, pcm, words="one two")
        tokens, mel, x_vector = prompt.sound.arrays()
        assert (tokens.shape, mel.shape, x_vector.shape) == ((50,), (100, 80), (192,))
        codes = prompt.rows[-57:, 0] - KNOWN.num_text_ids  # 115 mel frames, 58 tokens, of which 57 have two frames
        np.testing.assert_array_equal(codes[7:], tokens)
        assert prompt.rows[-58, 0] == KNOWN.ends[TASK]
        assert len(set(tokens.tolist())) > 10
        assert (prompt.sampling.audio.min_rows, prompt.sampling.ras_window) == (2 * 5, 10)
        style = ask(release.preprocessor, pcm, words="one two", instruct="Softly.")
        assert style.rows[-1, 0] == KNOWN.ends[TASK]
        other = ask(release.preprocessor, recording(2.3, seed=6))
        assert (other.sound.arrays()[2] != x_vector).any()

    @pytest.mark.parametrize("words", ["one two three four", ""])
    def test_streamed_text_prompt_is_split_into_groups(self, release: SmallRelease, words: str) -> None:
        """The prompt has only groups of the recording; its remaining codes, its words and the text follow."""
        pcm = recording(2.3)
        ends = KNOWN.ends
        whole = ask(release.preprocessor, pcm, "Hello.", words)
        prompt = ask(release.preprocessor, pcm, "Hello.", words, text_mode="streaming")
        style = whole.rows[:, 0].tolist()
        spoken = ask(release.preprocessor, pcm, "Hello.").rows[:, 0].tolist()
        head = style[: style.index(KNOWN.end_of_prompt) + 1]
        text = spoken[len(head) : -1]
        recorded = style[len(head) : style.index(ends[TASK]) - len(text)]
        codes = style[style.index(ends[TASK]) + 1 :]
        assert bool(codes) == bool(recorded) == bool(words)
        in_prompt = min(len(recorded) // 5, len(codes) // 15)
        groups = [recorded[5 * at :][:5] + codes[15 * at :][:15] for at in range(in_prompt)]
        assert prompt.rows[:, 0].tolist() == head + list(chain(*groups))
        assert list(prompt.track) == [*codes[15 * in_prompt :], *recorded[5 * in_prompt :], *text, ends[TASK]]
        assert (prompt.is_open, prompt.sampling.audio.min_rows) == (False, 0)
        begun = ask(release.preprocessor, pcm, "Hel", words, text_mode="open")
        assert (begun.is_open, begun.opening) == (True, "Hel")
        np.testing.assert_array_equal(begun.rows, prompt.rows)
        assert [*begun.track, *text, ends[TASK]] == list(prompt.track)
        assert ask(release.preprocessor, pcm, "", words, text_mode="open").track == begun.track

    def test_text_row_fillers_are_embedded_as_zeros(self, release: SmallRelease) -> None:
        """Their ids on stream 0 are embedded as zeros, because the authors' code does not read them."""
        table = release.weights["model.embed_tokens.weight"]
        is_zero = [index for index in KNOWN.ends if not table[index].any()]
        assert is_zero == [KNOWN.ends[FILL], KNOWN.given]

    def test_converted_codec_matches_the_release(self, release: SmallRelease) -> None:
        assert load(release.checkpoint).config == NARROW
        assert sorted(path.name for path in (release.checkpoint / FOLDER).iterdir()) == sorted([SPEAKER, TOKENIZER])
        assert release.family.layout == replace(KNOWN).layout

    def test_weights_file_may_be_given_by_path(self, copied: SmallRelease) -> None:
        weights = (copied.folder / MODEL).rename(copied.folder / "release" / "llm.rl.pt")
        release = replace(copied, arguments=["cosyvoice3", "--model", str(weights)])
        assert EMBEDDINGS not in release.weights
        assert release.checkpoint.exists()

    def test_named_voices_of_a_release_are_usable(self, copied: SmallRelease) -> None:
        """They act like a recording with these codes, words and instruction; the first voice is the default."""
        other = named(prompt_text=torch.tensor([[KNOWN.end_of_prompt]]))
        write_voices({"Anna": named(), "\u4e2d\u6587\u5973": other})(copied.folder / "release")
        preprocessor = copied.preprocessor
        assert preprocessor.family.voices == ("anna", "\u4e2d\u6587\u5973")
        prompt = ask(preprocessor, None, voice="Anna")
        tokens_, mel, x_vector = voice(3, 40)
        for got, expected in zip(prompt.sound.arrays(), (tokens_[15:], mel[30:], x_vector), strict=True):
            np.testing.assert_array_equal(got, expected)
        ids = prompt.rows[:, 0].tolist()
        assert ids[: 1 + len(TEXT_IDS)] == [KNOWN.ends[SOS], *TEXT_IDS]
        assert ids[-41:] == [KNOWN.ends[TASK], *(tokens_ + KNOWN.num_text_ids).tolist()]
        np.testing.assert_array_equal(ask(preprocessor, None).rows, prompt.rows)
        plain = ask(preprocessor, None, voice="\u4e2d\u6587\u5973").rows[:, 0].tolist()
        assert plain == [KNOWN.ends[SOS], KNOWN.end_of_prompt, *ids[1 + len(TEXT_IDS) : -41], KNOWN.ends[TASK]]
        softly = ask(preprocessor, None, voice="anna", instruct="Softly.").rows[:, 0].tolist()
        assert softly[-1] == KNOWN.ends[TASK]
        recorded = ask(preprocessor, recording(2.3))
        assert len(recorded.sound.arrays()[0]) == 50, "a recording is used instead"
        with pytest.raises(InvalidRequest, match=r"options.voice: expected one of anna, .*, got 'nobody'"):
            ask(preprocessor, None, voice="nobody")

    @pytest.mark.engine
    @pytest.mark.nightly  # by day, test_open_texts.py
    def test_text_word_by_word_gives_the_same_rows(self, releases: dict[str, SmallRelease]) -> None:
        from tests.engine.harness import Answer
        from tests.engine.test_open_texts import extend

        for size, release in releases.items():
            stored = {f"r{number}": reply for number, reply in enumerate(LIVE) if str(reply["release"]) == size}
            prompts = {name: prompt_of(release.checkpoint, reply) for name, reply in stored.items()}
            engine = self.start_engine(release.checkpoint, **TIGHT)
            answers = engine.run(prompts)
            for name, prompt in prompts.items():
                words = prompt.track[len(prompt.track) - len(stored[name]["ids"]) - 1 :]
                answer = Answer()
                engine.add(name, replace(prompt, track=prompt.track[: -len(words)], is_open=True))
                for number, word in enumerate(words):
                    for _ in range(number % 4):
                        engine._step({name: answer})
                    extend(engine, name, [word], is_last=number == len(words) - 1)
                while engine.is_busy():
                    engine._step({name: answer})
                assert answer.rows == answers[name].rows, name
            assert engine.is_clean()
            engine.shutdown()


def test_voice_without_end_of_instruction_token_is_refused(tmp_path: Path) -> None:
    """The checkpoint was edited after its conversion."""
    text = {"0.text": np.array([5, 6], np.int32)}
    tokens_, mel, x_vector = voice(3, 40)
    (tmp_path / NAMED).mkdir()
    path = tmp_path / NAMED / "model.safetensors"
    save_file(text | {"0.tokens": tokens_, "0.mel": mel, "0.x_vector": x_vector}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: anna: expected text with the id 7 of .*, got none"):
        read_named_voices(tmp_path, ["anna"], 7)


def test_fixture_is_numerically_unambiguous() -> None:
    """Every id leads clearly. Replies end by themselves and at their limit, and some ids are sampled again."""
    assert min(reply["lead"] for reply in REPLIES) > 1e-4
    assert {reply["release"] for reply in REPLIES} == {*SEEDS}
    is_full = {len(reply["codes"]) == 20 * len(reply["ids"]) for reply in REPLIES}
    assert is_full == {True, False}
    assert sum(reply["again"] for reply in REPLIES) > 2
    assert all(len(reply["codes"]) >= 2 * len(reply["ids"]) for reply in REPLIES)


def test_live_text_fixture_covers_every_border() -> None:
    """Texts end within the recording's codes, at a border, and after several groups; some replies end by themselves."""
    assert min(reply["lead"] for reply in LIVE) > 1e-3
    assert {len(reply["codes"]) > reply["border"] > 15 for reply in LIVE} == {True, False}
    assert {reply["border"] for reply in LIVE} >= {0, 15, 30}
    assert {reply["rows"] + 1 < reply["limit"] for reply in LIVE} == {True, False}


def test_reference_notices_near_ties_without_randomness() -> None:
    """At temperature 0, the runner-up is among the candidates of the reference, which compares it with the best one."""
    logits = [0.0, 1.0 - 1e-9, 1.0]
    limits = CodeSampling(0.0, top_k=1, top_p=0.1)
    family = build(KNOWN.to_record())
    kept = Codes(family.drawing, make_prompt(family, 0)).kept(logits, [2, 1, 0], limits, logits)
    assert kept == dict(enumerate(logits))


def test_long_runs_of_quiet_codes_are_shortened() -> None:
    """From the sixth consecutive quiet code, none is decoded, for any chunks."""
    family = build(KNOWN.to_record())
    codes = [7, *[1, 28, 2] * 3, 9, *[55] * 5, 3]
    for size in (1, 4, len(codes)):
        frames = FrameCodes(family, family.layout.codebook_streams)
        kept = list[int]()
        for start in range(0, len(codes), size):
            chunk = codes[start : start + size]
            frames.push(np.array(chunk)[:, None] + KNOWN.num_text_ids)
            popped = frames.pop_frames(len(chunk))
            kept += [] if popped is None else popped[0].tolist()
        assert kept == [7, 1, 28, 2, 1, 28, 9, *[55] * 5, 3]
