"""Higgs Audio v3 equals mlx-audio: prompts and rows of replies; prompts of texts equal those of the tokenizer."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as BpeTokenizer
from transformers import HiggsAudioV2TokenizerConfig

from plugins.cosyvoice3.tests.cosyvoice3_release import write_with_head
from plugins.higgs_audio.lab.higgs_audio_v3_replies import CASES, NUM_ROWS, SEEDS, TEXTS, WORDS, recording, stored
from plugins.higgs_audio.lab.random_higgs_audio_v3 import (
    KINDS,
    TAGS,
    codec_config,
    language_model,
    tensors,
    write_release,
)
from plugins.higgs_audio.tests.test_codec import transformers_class
from stretto.codecs.base import load_codec
from stretto.family.base import Family
from stretto.family.conversion import Tokenizer
from stretto.family.plugin import VOCABULARY, config_at
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import FamilyCase
from stretto_higgs_audio.codec import HiggsModel
from stretto_higgs_audio.higgs_audio_v3 import PLUGIN
from stretto_higgs_audio.higgs_audio_v3.convert import (
    CODEC,
    CODEC_CONFIG,
    CODES,
    DROPPED,
    Config,
    codec_network,
    plan,
    vocabulary,
)
from stretto_higgs_audio.higgs_audio_v3.convert import TEXTS as TEXT_TABLE
from stretto_higgs_audio.higgs_audio_v3.family import MARKERS, NEEDED, HiggsAudioV3Vocabulary
from tests.family_suite import FamilySuite
from tests.tiers import by_night

SECOND = 24_000
PCM = (np.sin(np.arange(2 * SECOND) ** 1.3 / 300) / 2).astype(np.float32)
RECORDED = np.random.default_rng(0).integers(1024, size=(8, 3)).tolist()
# Four of eight replies at once, prompts in chunks, and room for hardly two of them.
TIGHT: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 8,
}
ARRIVALS = {"7.cloned": 2, "7.sampled": 5, "8.greedy": 6, "8.cloned": 11, "8.sampled": 11}
AUDIO = "audio_encoder_config"
TEXT = "text_config"
# config.json of bosonai/higgs-tts-3-4b as third parties have recorded it, without the keys that are not read.
PUBLISHED: dict[str, Any] = {
    "model_type": "higgs_multimodal_qwen3",
    "audio_encoder_config": {
        "encoder_type": "discrete",
        "num_codebooks": 8,
        "vocab_size": 1026,
        "out_dim": 2560,
        "tie_word_embeddings": True,
        "use_delay_pattern": True,
    },
    "text_config": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    },
}
NUM_PUBLISHED = 4_654_850_537  # parameters in the file, as third parties have counted them


def write(folder: Path, size: str) -> list[str]:
    release = write_release(folder / "release", size)
    return ["higgs-audio-v3", f"--model={release}", f"--config={release}/config.json", f"--tokenizer={release}"]


def absolute(family: Family, size: str, rows: np.ndarray) -> np.ndarray:
    """Return rows of mlx-audio, text ids beside -1 or ids of codebooks, as rows of the family's ids."""
    width = KINDS[size]["num_codes"] + 2
    is_text = rows[:, 1:2] < 0
    text = np.where(np.arange(rows.shape[1]) == 0, rows, family.layout.pad_id)
    codes = rows + [ids.start for ids in family.layout.audio]
    assert ((rows < width) | is_text).all()
    return np.where(is_text, text, codes)


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


def requests(size: str) -> dict[str, dict[str, Any]]:
    """Return the inputs for all replies in the fixture, by seed and case."""
    voice = turn("system", text=WORDS, codes=recording(size).tolist())
    return {
        f"{seed}.{name}": talk(
            *([voice] if is_cloned else []),
            turn("user", text=TEXTS[seed]),
            seed=seed,
            audio={**audio, "max_rows": NUM_ROWS},
        )
        for seed in SEEDS
        for name, (audio, is_cloned) in CASES.items()
    }


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """Return those of mlx-audio, and of texts whose tags are single tokens for the library."""
    tokenizer = BpeTokenizer.from_file(str(release.checkpoint / "tokenizer.json"))
    expected = {
        name: (inputs, absolute(release.family, release.size, stored()[f"{release.size}.{name}.prompt"]))
        for name, inputs in requests(release.size).items()
    }
    tagged = (f"{TAGS[0]}it rains", f"a{TAGS[3]}b{TAGS[3]}{TAGS[1]}", f"{TAGS[2]} Ahem")
    for text in ("the well", " the\nwell ", *tagged):
        ids = tokenizer.encode(f"<|tts|><|text|>{text}<|audio|>", add_special_tokens=False).ids
        rows = np.full((len(ids), release.family.num_codebooks), release.family.layout.pad_id)
        rows[:, 0] = ids
        expected[text] = asked(text), rows
    return expected


class TestHiggsAudioV3(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "narrow"),
        unneeded_tensors=[name for name in tensors() if name.startswith(DROPPED)],
        same_configs=[{f"{TEXT}.rope_parameters": None, f"{TEXT}.rope_theta": None}],
        refused_configs=[
            ({f"{AUDIO}.out_dim": 32}, "out_dim: expected 64, got 32"),
            ({"codec_config.acoustic_model_config.n_codebooks": 1 << 63}, "at most 1024"),
            ({f"{AUDIO}.num_codebooks": 4}, "expected 4 codebooks of 1024 codes"),
            ({f"{TEXT}.max_position_embeddings": 19}, "max_position_embeddings: expected at least 20 rows, got 19"),
            ({f"{TEXT}.num_key_value_heads": 3}, "num_attention_heads: expected a multiple of 3"),
            ({f"{TEXT}.intermediate_size": 32}, "tensors do not match: wrong shape"),
            ({"codec_config.codebook_dim": "a"}, "codec_config: invalid parameters"),
            ({"codec_config.semantic_sample_rate": 0}, "expected (24000, 16000), got (24000, 0)"),
            ({"codec_config.downsample_factor": 999}, "downsample_factor: expected at least 1"),
            ({"codec_config.codebook_dim": 4}, "wrong shape: tied.embedding"),
        ],
        needed_tokens=["<|text|>"],
        prompts=prompts,
        refused_inputs=[
            (asked(" "), "text: expected text with at least one non-space character"),
            *(
                (asked(f"{tag}a"), f"text: expected tags of this model ({', '.join(TAGS[:3])}, …), got '{tag[:5]}")
                for tag in (
                    "<|emotion:joy|>",
                    "<|emotion:very happy|>",
                    "<|emotion: elation|>",
                    "<| emotion :\nelation|>",
                    "<|Emotion:elation|>",
                    "<|sfx:a>b|c|>",
                    f"<|style:{'o' * 65}|>",
                    "<|prosody:|>",
                    "<|emotion:<|emotion:joy|>",
                )
            ),
            (asked("a", guidance_scale=2), "options.guidance_scale: expected"),
            (asked("a", {"text": "b"}), "messages[0].text: expected text only together with the audio of a voice"),
            (asked("a", {"codes": RECORDED[:4]}), "messages[0].codes: expected 8 streams, got 4 streams"),
            (asked("a", {"text": " ", "codes": RECORDED}), "messages[0].text: expected text with at least one"),
            (asked("o " * 600), "text: expected a prompt of at most"),
        ],
        markers=["<|audio|>", "<|chatml|>", "<|streaming_tts|>", "<|endoftext|>"],
        refused_markers=["<|audio|>", "<|chatml|>", "<|streaming_tts|>", "<|endoftext|>"],
        conformance={
            "vocabulary": HiggsAudioV3Vocabulary(
                60, 4, 6, {name: 54 + index for index, name in enumerate(NEEDED)}, 512
            ).to_record(),
            "write": write_with_head,
            "num_prompts": 20,
        },
        conforms_by_night=True,
    )

    def test_published_sizes_add_up(self) -> None:
        """The tensors of the plan, the copies of the tied tables and one tensor of the codec are the whole file."""
        config = Config.read(PUBLISHED)
        tokens = Tokenizer(Path(), 151_670, {token_id: name for name, token_id in MARKERS.items()})
        published = vocabulary(config, tokens)
        assert published == HiggsAudioV3Vocabulary()
        parts = plan(config, published) | codec_network(config, published).plan
        assert len(parts) + 1 == 927  # names in the published index
        stored = {name: prod(part.stored) for name, part in parts.items()}
        assert sum(stored.values()) + stored[TEXT_TABLE] + stored[CODES] + 768 == NUM_PUBLISHED
        assert sum(name.startswith(CODEC) for name in parts) + 1 == 528
        assert sum(name.startswith("body.layers.") for name in parts) == 396

    def test_tables_and_codec_are_written(self, release: SmallRelease) -> None:
        published = tensors()
        written = release.weights
        assert written["model.embed_tokens.weight"].equal(torch.cat([published[TEXT_TABLE], published[CODES]]))
        assert written["audio_head.weight"].equal(published[CODES])
        assert {*written} == {
            "audio_head.weight",
            "model.embed_tokens.weight",
            *(name.replace("body.", "model.") for name in language_model() if name.startswith("body.")),
        }
        record = config_at(release.checkpoint)
        vocab = HiggsAudioV3Vocabulary.from_record(record[VOCABULARY])
        assert vocab.tags == release.family.tags == TAGS
        assert [*vocab.markers][-len(TAGS) :] == [*TAGS], "a release converts to the same bytes each time"
        codec: Any = load_codec("higgs", release.checkpoint)
        assert codec.can_encode
        for name, tensor in codec.model.state_dict().items():
            assert tensor.equal(published[f"{CODEC}{name}"]), name

    def test_codec_is_that_of_the_earlier_release_without_a_config(self) -> None:
        record = codec_network(Config.read(PUBLISHED), HiggsAudioV3Vocabulary()).record
        default = HiggsAudioV2TokenizerConfig.from_dict(CODEC_CONFIG).to_dict()
        assert record == default | {"architectures": ["HiggsAudioV2TokenizerModel"]}
        assert HiggsModel.config_class.from_dict(record).num_quantizers == 8

    def test_streams_begin_with_their_begin_ids(self, release: SmallRelease) -> None:
        prompt = release.preprocessor.prepare(RawRequest(text="a"))
        assert prompt.delayed_tail is not None
        assert prompt.delayed_tail.tolist() == [[ids.stop for ids in release.family.layout.audio[1:]]] * 7

    @pytest.mark.parametrize("length", [SECOND // 2, SECOND, SECOND + 961, 2 * SECOND])
    def test_recording_has_the_codes_of_transformers(
        self, release: SmallRelease, monkeypatch: pytest.MonkeyPatch, length: int
    ) -> None:
        """A recording shorter than a second is completed with silence."""
        tokenizer = transformers_class(monkeypatch)(codec_config()).eval()
        published = {name.removeprefix(CODEC): each for name, each in tensors().items() if name.startswith(CODEC)}
        tokenizer.load_state_dict({name: published[name] for name in tokenizer.state_dict()})
        pcm = torch.from_numpy(np.pad(PCM[:length], (0, max(0, SECOND - length))))
        with torch.no_grad():
            codes = tokenizer.encode(pcm[None, None]).audio_codes[0].numpy()
        encoded = asked("a", {"text": "b", "codes": codes.tolist()})
        recorded = asked("a", {"text": "b", "audio": "pcm_in"}, pcm=PCM[:length])
        rows, expected = (release.preprocessor.prepare(RawRequest(**inputs)).rows for inputs in (recorded, encoded))
        assert rows.tolist() == expected.tolist()

    def test_recording_without_words(self, release: SmallRelease) -> None:
        family = release.family
        rows = release.preprocessor.prepare(RawRequest(**asked("a", {"codes": RECORDED}))).rows
        recorded = rows[2 : 2 + 3 + 7] - [ids.start for ids in family.layout.audio]
        assert rows[:2, 0].tolist() == [family.markers["<|tts|>"], family.markers["<|ref_audio|>"]]
        assert recorded[:, 0].tolist() == [*RECORDED[0], *[1025] * 7]
        assert recorded[:, 7].tolist() == [*[1024] * 7, *RECORDED[7]]
        assert rows[12, 0] == family.markers["<|text|>"]

    @pytest.mark.parametrize("sample_rate", [8000, 48_000])
    def test_recording_of_another_rate_has_its_length(self, release: SmallRelease, sample_rate: int) -> None:
        inputs = asked("a", pcm=np.resize(PCM, 2 * sample_rate), sample_rate=sample_rate)
        assert len(release.preprocessor.prepare(RawRequest(**inputs)).rows) == len("ra") + 2 * 25 + 7 + len("txa")

    def test_tags_and_other_names_are_no_markers(self, release: SmallRelease, copied: SmallRelease) -> None:
        """Also if the release does not mark its tokens as special."""
        with edited(copied.folder / self.case.tokenizer) as record:
            for token in record["added_tokens"]:
                token["special"] = False
        for text in (f"{TAGS[0]}a", "<|well|>"):
            one, other = (each.preprocessor.prepare(RawRequest(text=text)).rows for each in (release, copied))
            assert one.tolist() == other.tolist()

    @pytest.mark.engine
    @pytest.mark.parametrize(
        ("size", "is_async"), [("narrow", True), *by_night(("narrow", False), ("small", True), ("small", False))]
    )
    def test_replies_match_mlx_audio(self, releases: dict[str, SmallRelease], size: str, is_async: bool) -> None:
        """Greedy and sampled replies, with and without a voice; alone, with other requests, and preempted.

        A reply that ends has seven rows after the end id; at the length limit, mlx-audio stops without these rows.
        """
        from tests.engine.harness import Engine

        release = releases[size]
        family = release.family
        prompts: dict[str, Prompt] = {
            name: release.preprocessor.prepare(RawRequest(**inputs)) for name, inputs in requests(size).items()
        }
        with Engine(release.checkpoint, max_model_len=256, async_scheduling=is_async) as engine:
            alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
            together = engine.run(prompts, ARRIVALS)
            assert engine.is_clean()
        assert {name: answer.rows for name, answer in together.items()} == alone
        with Engine(release.checkpoint, async_scheduling=is_async, **TIGHT) as engine:
            preempted = engine.run(prompts, ARRIVALS)
            assert engine.is_clean()
        assert {name: answer.rows for name, answer in preempted.items()} == alone
        assert sum(answer.trailer.num_preemptions for answer in preempted.values() if answer.trailer) > 0
        slowest = family.layout.max_delay
        ends = set[bool]()
        for name, rows in alone.items():
            expected = absolute(family, size, stored()[f"{size}.{name}.rows"]).tolist()
            has_ended = bool(stored()[f"{size}.{name}.ended"])
            ends.add(has_ended)
            assert rows[: len(expected)] == expected, name
            assert rows[-1][0] == family.end_of_reply
            assert len(rows) == (len(expected) + 1 if has_ended else NUM_ROWS + slowest + 1), name
            assert rows[-1 - slowest][0] == family.end_of_audio
        assert ends == {False, True}
