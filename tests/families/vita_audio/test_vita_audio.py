"""VITA-Audio: replies equal those of the authors' `generate` on every schedule; those of Plus equal a recomputation."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lab.releases import random_vita
from lab.releases.random_glm4_voice import write_glm4_tokenizer, write_glm4_voice
from lab.releases.random_vita import ADAPTOR, TOWER
from stretto.config import DecoderConfig
from stretto.decoder.worker import DecoderWorker, open_codec
from stretto.errors import InvalidRequest
from stretto.families.vita_audio import PLUGIN
from stretto.families.vita_audio.convert import schedule
from stretto.families.vita_audio.family import SCHEDULES, VitaVocabulary
from stretto.families.vita_audio.prompt import SYSTEM_TEXT, interleave, open_template
from stretto.family.plugin import config_at
from stretto.family.prompting import Piece
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import RawRequest
from stretto.records.chunk import Chunk
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes
from stretto.testing.limits import asked, talk
from stretto.testing.releases import REMOVED, SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase, assert_same_checkpoints
from tests.encoders.recordings import HEARD, speech
from tests.fakes import RecordedReply
from tests.family_suite import FamilySuite
from tests.reference.vita_audio import VitaReference
from tests.reference.vita_hearing import heard_by_plus
from tests.vita_release import RECORD, prompt_of

CONFIGS = {
    "small": random_vita.SMALL,
    "plus": random_vita.PLUS,
    "no modules": random_vita.SMALL | {"model_type": "qwen2", "num_hidden_layers": 2, "num_nextn_predict_layers": 0},
}
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
BEGIN = "<|begin_of_audio|>"
END = "<|end_of_audio|>"
CONTEXT = "<|context_of_audio|>"
ASSISTANT = (IM_START, "assistant", "\n")
LENGTH = 24  # rows of a reply of Plus
Part = str | list[int]


def write(folder: Path, size: str) -> list[str | Path]:
    release = random_vita.write_release(folder / "release", CONFIGS[size], RECORD["seed"])
    codec = write_glm4_voice(folder / "codec")
    words = ["vita-audio", *("--model", release), *("--config", release / "config.json"), *("--tokenizer", release)]
    words += ["--codec", codec]
    return words if size == "plus" else [*words, "--ssl-tokenizer", write_glm4_tokenizer(folder / "tokenizer")]


def turn(role: str, *content: Part) -> tuple[Part, ...]:
    return (IM_START, role, "\n", *content, IM_END, "\n")


def rows_of(release: SmallRelease, *parts: Part) -> np.ndarray:
    """Return rows of markers by name, of other strings tokenised separately, and of lists as codes."""
    tokenizer = TextTokenizer.at(release.checkpoint)
    id_of = {token: token_id for token_id, token in tokenizer.tokens.items()}
    ids = list[int]()
    for part in parts:
        if isinstance(part, list):
            ids += [id_of[f"<|audio_{code}|>"] for code in part]
        else:
            ids += [id_of[part]] if part.startswith("<|") else tokenizer.encode(part)
    return np.array(ids)[:, None]


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    heard = {"pcm_in": speech(1.0), "sample_rate": 16_000, "task": "asr"}
    request = "Convert the speech to text.\n"
    if release.size == "plus":
        rows = [CONTEXT] * (4 + 17)
        return {"asr": (heard, rows_of(release, *turn("user", request, BEGIN, *rows, END), *ASSISTANT))}
    codes = {"role": "user", "codes": [[3, 1, 4]]}
    hi = {"role": "user", "text": "hi"}
    voice = {"role": "system", "codes": [[7, 7]]}
    terse = {"role": "system", "text": "be terse."}
    said = {"role": "assistant", "text": "a man", "codes": [[1]]}
    luke = turn("system", SYSTEM_TEXT)
    sounds = (BEGIN, [3, 1, 4], END)
    words = "how are you?"
    dialogue = {"task": "dialogue"}
    expected: dict[str, tuple[dict[str, Any], tuple[Part, ...]]] = {
        "tts": (asked(words), turn("user", f"Convert the text to speech.\n{words}")),
        "chat": (asked(words) | {"task": "chat"}, turn("user", words)),
        "codes": (talk(codes) | {"task": "asr"}, turn("user", request, *sounds)),
        "asr": (heard, turn("user", request, BEGIN, json.loads(HEARD.read_text())["1.0"], END)),
        "dialogue": (talk(codes) | dialogue, (*luke, *turn("user", "\n", *sounds))),
        "transcript": (talk(codes | {"text": words}) | dialogue, (*luke, *turn("user", f"{words}\n", *sounds))),
        "voice": (
            talk(voice, hi) | {"task": "tts"},
            (
                *turn("system", "Your Voice: ", BEGIN, [7, 7], END, "\n"),
                *turn("user", "Convert the text to speech.\nhi"),
            ),
        ),
        "history": (
            talk(terse, hi, said, codes) | dialogue,
            (
                *turn("system", "be terse."),
                *turn("user", "hi"),
                *turn("assistant", "a man", BEGIN, [1], END),
                *turn("user", "\n", *sounds),
            ),
        ),
    }
    return {name: (inputs, rows_of(release, *parts, *ASSISTANT)) for name, (inputs, parts) in expected.items()}


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """Return replies of each schedule, named or not, with each of three prompts and each of three penalties."""
    if release.size == "plus":
        return {name: replied(release, prompt, recomputed(release, prompt)) for name, prompt in spoken(release).items()}
    stored = RECORD["replies"][::4]
    expected = {f"r{number}": replied(release, prompt_of(reply), reply["ids"]) for number, reply in enumerate(stored)}
    # and as text, which no id is denied either
    return expected | {"text": replied(release, prompt_of(stored[-1], "chat"), stored[-1]["ids"])}


def replied(release: SmallRelease, prompt: Prompt, ids: list[int]) -> ExpectedReply:
    """Return the reply up to the first end token, with an end token."""
    ends = release.family.drawn_ends
    size = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return ExpectedReply(prompt, [[token] for token in [*ids[:size], ends[0]]])


def spoken(release: SmallRelease) -> dict[str, Prompt]:
    """Return prompts in two voices with different schedules, one of them twice, as the ensemble passes them."""
    passed = dict[str, Prompt]()
    turns = ({"role": "system", "text": "be terse."}, {"role": "user", "audio": "pcm_in"})
    for name, seconds, mode in (("a", 1.0, "turbo"), ("b", 1.5, "balance"), ("c", 1.0, "vanilla")):
        pcm = speech(seconds + (name == "b"))[-round(16_000 * seconds) :]
        inputs = talk(*turns, schedule=mode, text={"min_rows": LENGTH, "max_rows": LENGTH}) | {"task": "dialogue"}
        prompt = release.preprocessor.prepare(RawRequest(**inputs, pcm_in=pcm, sample_rate=16_000))
        passed[name] = Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows, prompt.features)
    return passed


def recomputed(release: SmallRelease, prompt: Prompt) -> list[int]:
    """Return the greedy reply, computed by definition."""
    sampling = prompt.sampling
    reference = VitaReference(random_vita.SMALL, random_vita.tensors(random_vita.PLUS, RECORD["seed"]))
    mode = SCHEDULES[sampling.schedule or "balance"]
    heard = heard_by_plus(release.checkpoint, prompt)
    return reference.reply(prompt.rows[:, 0].tolist(), mode, LENGTH, sampling.repetition_penalty, heard)


class TestVitaAudio(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "plus"),
        refused_configs=[
            ({"model_type": "qwen2_mtp_sensevoice"}, "--ssl-tokenizer: not supported by VITA-Audio-Plus"),
            (
                {"model_type": "llama"},
                "model_type: expected 'qwen2_mtp' or 'qwen2' or 'qwen2_mtp_sensevoice', got 'llama'",
            ),
            ({"rms_norm_eps": REMOVED}, "config.json: rms_norm_eps is missing"),
            ({"num_nextn_predict_layers": 12}, "expected less than num_hidden_layers, which is 12, got 12"),
            ({"vocab_size": 300}, "expected a tokenizer of at most 300 tokens with "),
            (
                {"num_hidden_layers": 3, "num_nextn_predict_layers": 1},
                "mtp_inference_mode: expected at most 1 modules, got [1, 4, 3, 8, 4, 10]",
            ),
            ({"hidden_size": 32}, "wrong shape: "),
        ],
        refused_edits=[
            (
                "release/generation_config.json",
                lambda record: record.update(mtp_inference_mode=[1, 4, 3]),
                "mtp_inference_mode: expected one of [8192, 0], [1, 4, 3, 8,",
            )
        ],
        needed_tokens=["<|im_start|>", BEGIN, "<|audio_9|>"],
        prompts=prompts,
        refused_inputs=[
            (
                {"pcm_in": speech(0.05), "sample_rate": 16_000, "task": "asr"},
                "pcm_in: expected at least 0.08 s, got 0.0500 s",
            ),
            (talk({"role": "user", "codes": [[1], [2]]}), "messages[0].codes: expected 1 streams, got 2 streams"),
        ],
        markers=[IM_END],
        replies=replies,
        engine={"max_model_len": 160},
        # A budget below some prompts, and blocks for little more than one reply.
        tight={"max_num_batched_tokens": 32, "num_gpu_blocks_override": 6},
    )

    def test_ids_match_the_tokenizer(self, release: SmallRelease) -> None:
        tokens = json.loads((release.checkpoint / "tokenizer.json").read_text())["added_tokens"]
        ids = {token["content"]: token["id"] for token in tokens}
        family = release.family
        assert family.layout.audio[0] == range(ids["<|audio_0|>"], ids["<|audio_63|>"] + 1)
        assert family.drawn_ends == (ids[IM_END], ids["<|endoftext|>"])
        assert family.markers["begin_of_audio"] == ids[BEGIN]

    def test_tensors_keep_their_values(self, releases: dict[str, SmallRelease]) -> None:
        release = releases["plus"]
        published = load_file(release.folder / "release" / "model.safetensors")
        unused = {name for name in published if ".ctc." in name}
        assert len(unused) == 2
        renamed = {TOWER: "audio_tower.", ADAPTOR: "adaptor."}
        expected = {
            name.replace(TOWER, renamed[TOWER]).replace(ADAPTOR, renamed[ADAPTOR]): tensor
            for name, tensor in published.items()
            if name not in unused
        }
        assert release.weights.keys() == expected.keys()
        assert all(torch.equal(release.weights[name], tensor) for name, tensor in expected.items())
        family = release.family
        assert family.markers["context_of_audio"] == 1 + family.markers["end_of_audio"]
        audio = config_at(release.checkpoint)["audio_config"]
        assert (audio["num_blocks"], len(audio["shift"])) == (3, 560)
        layer = (release.folder / "release" / "am.mvn").read_text().split("<Rescale>")[1]
        numbers = layer.split("[ ")[1].split(" ]")[0]
        assert audio["scale"] == [float(number) for number in numbers.split()]

    def test_modules_with_a_model_prefix_are_converted(self, release: SmallRelease, copied: SmallRelease) -> None:
        """Some tools write module names with this prefix."""
        with self._tensors(copied) as tensors:
            for name in [name for name in tensors if name.startswith("mtp_")]:
                tensors[f"model.{name}"] = tensors.pop(name)
        assert_same_checkpoints(release, copied)

    def test_release_without_modules_has_no_schedules(self, tmp_path: Path) -> None:
        release = SmallRelease.written(tmp_path / "plain", "no modules", write)
        assert config_at(release.checkpoint)["num_hidden_layers"] == 2
        assert release.family.mechanism.steps is None

    def test_all_schedules_can_be_selected(self, release: SmallRelease) -> None:
        bursts = release.family.mechanism.steps
        assert bursts.num_modules == 10
        assert bursts.schedules[0].name == "balance"
        assert {mode.name: mode.mode for mode in bursts.schedules} == SCHEDULES

    def test_audio_inputs_have_a_row_per_encoder_row(self, releases: dict[str, SmallRelease]) -> None:
        """The prompt has a voice and a question, twice; an earlier reply stays as codes."""
        release = releases["plus"]
        template = open_template(release.family, release.checkpoint, None, "cpu")
        voice = Piece("system", "system.audio", pcm=speech(0.5))
        question = Piece("user", "user.audio", pcm=speech(1.0))
        said = (
            Piece("assistant", "assistant.text", text="fine"),
            Piece("assistant", "assistant.codes", codes=np.array([[1]])),
        )
        prompt = template.write(release.family.task("dialogue"), (voice, question, *said, question), None)
        asking = turn("user", "\n", BEGIN, *[CONTEXT] * (4 + 17), END)
        expected = rows_of(
            release,
            *turn("system", "Your Voice: ", BEGIN, *[CONTEXT] * (4 + 8), END, "\n"),
            *asking,
            *turn("assistant", "fine", BEGIN, [1], END),
            *asking,
            *ASSISTANT,
        )
        assert prompt.rows.tolist() == expected.tolist()
        context = release.family.markers["context_of_audio"]
        heard = [row for audio in prompt.audios for row in range(audio.first_row, audio.first_row + audio.num_rows)]
        assert heard == np.flatnonzero(prompt.rows[:, 0] == context).tolist()
        assert [len(audio.features) for audio in prompt.audios] == [8, 17, 17]
        assert np.array_equal(prompt.audios[1].features, prompt.audios[2].features)
        codes = Piece("user", "user.codes", codes=np.array([[1]]))
        with pytest.raises(InvalidRequest) as refusal:
            template.write(release.family.task("asr"), (codes,), None)
        assert str(refusal.value).startswith("user.codes: expected audio samples (VITA-Audio-Plus does not accept")

    def test_reply_chunks_follow_the_decoder_block_sizes(self, release: SmallRelease) -> None:
        inputs = asked("How are you?", chunking={"first_frames": 2})
        prompt = release.preprocessor.prepare(RawRequest(**inputs))
        policy = Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows).delivery.chunking
        codec = open_codec(DecoderConfig(codec=release.family.codec), release.checkpoint)
        assert policy.blocks == codec.spec.blocks
        codes = random_codes(codec, 1, 30)[0].numpy()
        pacer = Pacer(policy)
        num_sent = 0
        chunks = list[RecordedReply]()
        worker = DecoderWorker(codec, DecoderConfig(codec="glm4_voice", stop_timeout_s=60))
        try:
            for num_ready in range(1, 31):
                size = pacer.num_to_send(num_ready - num_sent) or (30 - num_sent) * (num_ready == 30)
                if size:
                    chunks.append(RecordedReply(None, ("u", len(chunks))))
                    chunk = Chunk(len(chunks) - 1, Segment.INTERLEAVED, is_final=num_ready == 30)
                    worker.push("u", chunk, codes[:, num_sent : num_sent + size], chunks[-1])
                    num_sent += size
            lengths = [len(reply.wait().pcm) for reply in chunks]
        finally:
            worker.stop()
        held = codec.spec.right_frames
        assert lengths == [(25 - held) * 1764, (5 + held) * 1764]
        assert all(np.abs(reply.pcm).max() > 0.01 for reply in chunks)


@pytest.mark.parametrize("mode", SCHEDULES)
def test_schedule_of_generation_config_is_the_default(tmp_path: Path, mode: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"mtp_inference_mode": list(SCHEDULES[mode])}))
    assert schedule(tmp_path, 10) == mode


def test_default_schedule_depends_on_the_number_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "balance", (12, 4))  # 12 rows of the backbone need no module
    assert schedule(tmp_path, 4) == "balance"
    assert schedule(tmp_path, 3) == "vanilla"


def test_text_and_codes_are_interleaved_as_in_training() -> None:
    words = list(range(9))
    sounds = list(range(100, 130))
    ratio = (1, 4, 3, 8, 4, 10)
    assert interleave(words, sounds, ratio, (-1, -2)) == [
        *(0, -1, 100, 101, -2),
        *(1, 2, 3, -1, *range(102, 108), -2),
        *(4, 5, 6, 7, -1, *range(108, 116), -2),
        *(8, -1, *range(116, 130), -2),
    ]
    assert interleave(words, [100], ratio, (-1, -2)) == [*words, -1, 100, -2]
    assert interleave(words, [], ratio, (-1, -2)) == words
    assert interleave([], sounds, ratio, (-1, -2)) == [-1, *sounds, -2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 1000}, "first_audio + codebook_size must be at most vocab_size, got "),
        ({"markers": {}}, "markers: missing "),
        ({"ratio": (1,)}, "ratio: expected pairs of M >= 1 and m >= 3, got (1,)"),
        ({"ratio": (1, 2)}, "ratio: expected pairs of M >= 1 and m >= 3, got (1, 2)"),
        ({"schedule": "boost", "num_modules": 1}, "schedule: 'boost' requires more than 1 modules"),
        ({"schedule": "fast"}, "schedule: 'fast' requires more than 10 modules"),
    ],
)
def test_vocabulary_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VitaVocabulary(**changed)
