"""Train the language model further to transcribe its own speech, also from telephones, and to speak as before.

    python -m training.tiny.train_hearing --wordnet DIR --scripts DIR --shards DIR --checkpoint DIR --out DIR

The model speaks the texts; its speech and the teacher's are altered, encoded and transcribed. The loss of speech is the
divergence from the network as it was. The command writes `network.pt` into `out`, for `export`.
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.tiny.codec import SAMPLE_RATE, TinyCodec
from stretto.codecs.tiny.codec import load as load_tiny
from stretto.families.tiny.recording import MARGIN_S, extract_speech, speech_bounds
from training.tiny import builders
from training.tiny.alterations import Alteration, coded, louder, noisy, resampled, without_bass
from training.tiny.batch import STREAM_WEIGHTS, losses
from training.tiny.corpus import Batch, Corpus, pack
from training.tiny.encode import FRAME, Recordings, ShardEncoder
from training.tiny.encoded import Spoken, Transcript, frame_starts, phoneme_of_frames
from training.tiny.evaluate import resynthesise
from training.tiny.export import load_exported
from training.tiny.generate import Speaking, speak_aligned
from training.tiny.network import Network
from training.tiny.optimiser import Optimiser
from training.tiny.prose import everyday, plain_texts, texts, wordnet
from training.tiny.script_files import SCRIPTS, read_scripts
from training.tiny.scripts import scripts_of
from training.tiny.sequences import NO_TARGET, Rows, phoneme_text
from training.tiny.synthesise import VOICE, read_shard
from training.tiny.teacher import Head, Reader, Script
from training.tiny.test_sets import domain_sentences, open_sentences
from training.tiny.train_ears import BASS_HZ, alterations, levelled

ROWS = {"own": 10_400, "teacher": 2_400, "speech": 2_800, "reading": 4_800, "long": 6_000, "spelling": 600}  # per step
WEIGHTS = {"own": 1.0, "teacher": 0.3, "long": 1.0, "spelling": 0.1}
DIVERGENCE_WEIGHTS = {"speech": 1.0, "reading": 4.0}
TEXT_WEIGHTS = {"own": 30.0, "teacher": 5.0, "long": 1.0, "spelling": 1.0}  # of text relative to frames
UNCONDITIONAL = 0.3  # share of the unconditional requests in the batches of speech
PEAK = 0.25  # largest learning-rate scale
FLAT = 0.15  # share of the steps after which it falls
WARM_UP = 30
TOGETHER = 128  # texts that are spoken together
MAX_FRAMES = 480
LONG = 120  # characters of a long text
TEACHER_FRAMES = (20, 230)
Recorded = tuple[Spoken, np.ndarray]  # with its codes, uint8 [T, 7]


def recordings(rng: np.random.Generator) -> list[list[Alteration]]:
    """Return three lists of alterations, each to be applied in order: mu-law, a worse recording, and any or none."""
    mulaw = coded("pcm_mulaw", "wav", 8000)
    worse = [noisy(rng.uniform(-70, -40), rng)] * int(rng.random() < 0.4)
    worse += [without_bass(rng.uniform(*BASS_HZ))] * int(rng.random() < 0.3)
    worse.append(louder(rng.uniform(-25, 3)))
    worse.append(mulaw if rng.random() < 0.75 else resampled(int(rng.integers(8000, 16_000))))
    return [[mulaw], worse, [] if rng.random() < 0.65 else alterations(rng)]


def altered(pcm: np.ndarray, alterations_: Sequence[Alteration]) -> np.ndarray:
    """Return the samples after these alterations."""
    for alter in alterations_:
        pcm = alter(pcm)
    return pcm.astype(np.float32)


def own_speech(network: Network, scripts: Sequence[Script]) -> list[Recorded]:
    """Return the model's speech of these scripts, without utterances that do not end."""
    found: list[Recorded] = []
    ordered = sorted(scripts, key=lambda script: len(script.phonemes))
    for start in range(0, len(ordered), TOGETHER):
        transcripts = [Transcript(each.text, each.phonemes, each.words) for each in ordered[start : start + TOGETHER]]
        written = [transcript.text for transcript in transcripts]
        phonemes = [phoneme_text(transcript)[0] for transcript in transcripts]
        spoken = speak_aligned(network, written, VOICE, Speaking(seed=start, max_rows=500), phonemes)
        for transcript, utterance in zip(transcripts, spoken, strict=True):
            if utterance.ended:
                found.append((Spoken(transcript, VOICE, utterance.phoneme_of_frame), utterance.codes.astype(np.uint8)))
    return found


def heard(spoken: Spoken, pcm: np.ndarray, codec: TinyCodec) -> Recorded | None:
    """Return a recording of an utterance as the server reads it; None if it is too short or long, or has no speech."""
    speech = extract_speech(pcm, SAMPLE_RATE)
    if speech is None:
        return None
    codes = codec.encode(speech).T.astype(np.uint8)
    centred = pcm - pcm.mean(dtype=np.float64).astype(np.float32)
    first = speech_bounds(centred, SAMPLE_RATE)[0] - int(MARGIN_S * SAMPLE_RATE)
    count = len(spoken.transcript.phonemes)
    ends = np.searchsorted(spoken.phoneme_of_frame, np.arange(count), side="right") - first / FRAME
    if not count <= len(codes) <= MAX_FRAMES:
        return None
    starts = frame_starts(list(ends.clip(0, len(codes))), len(codes))
    return Spoken(spoken.transcript, VOICE, phoneme_of_frames(starts, len(codes))), codes


def corpus(utterances: Sequence[Recorded], build: Callable[[Spoken], Rows], speaks: bool) -> Corpus:
    """Return the sequences of utterances and their codes."""
    packed = pack([build(spoken) for spoken, _ in utterances])
    return Corpus([packed], torch.from_numpy(np.concatenate([codes for _, codes in utterances])), speaks, "cpu")


def texts_alone(scripts: Sequence[Script], build: Callable[[Transcript], Rows]) -> Corpus:
    """Return the sequences of scripts, without audio."""
    transcripts = [Transcript(script.text, script.phonemes, script.words) for script in scripts]
    return Corpus([pack([build(transcript) for transcript in transcripts])], None, False, "cpu")


@torch.inference_mode()
def own_recordings(own: Sequence[Recorded], codec: TinyCodec, rng: np.random.Generator) -> list[Recorded]:
    """Return three recordings of each utterance."""
    found = []
    for spoken, codes in own:
        pcm = resynthesise(codec, codes).astype(np.float32)
        found += [heard(spoken, altered(pcm, chosen), codec) for chosen in recordings(rng)]
    return [utterance for utterance in found if utterance is not None]


@torch.inference_mode()
def teacher_recordings(
    paths: Sequence[Path], audio: ShardEncoder, codec: TinyCodec, rng: np.random.Generator
) -> Corpus:
    """Return three recordings of each of the teacher's utterances that are short and of nearly unchanged speed."""
    parts = []
    codes = []
    for path in paths:
        shard = read_shard(path)
        lengths = shard.listen["frames"]
        first = shard.listen["first"]
        for index in np.flatnonzero((lengths > TEACHER_FRAMES[0]) & (lengths < TEACHER_FRAMES[1])):
            if abs(shard.speed[index] - 1) >= 0.1:
                continue
            one = slice(index, index + 1)
            pcm = audio.audio(shard, shard.listened[one], bool(rng.random() < 0.1))
            place = Recordings(torch.from_numpy(shard.before[one]), torch.from_numpy(shard.speed[one]))
            clean = levelled(place.place(pcm, int(lengths[index]) * FRAME)[0].numpy())
            rows = slice(first[index], first[index + 1])
            sequence = {name: shard.listen[name][rows] for name in builders.ARRAYS}
            sequence |= {name: shard.listen[name][one] for name in ("audio", "frames")}
            for chosen in recordings(rng):
                parts.append(sequence | {"first": np.array([0, first[index + 1] - first[index]])})
                codes.append(codec.encode(levelled(altered(clean, chosen))).T[: lengths[index]].astype(np.uint8))
    return Corpus(parts, torch.from_numpy(np.concatenate(codes)), False, "cpu")


def divergence(network: Network, original: Network, batch: Batch) -> Tensor:
    """Return the mean Kullback-Leibler divergence from the original network: stream 0 plus codebooks."""
    has_text = batch.target != NO_TARGET
    speaks = (batch.codes != NO_TARGET).any(-1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network(batch.ids)
        text = network.text_logits(hidden[has_text]).float().log_softmax(-1)
        codes = network.code_logits(hidden[speaks]).float().log_softmax(-1)
        with torch.no_grad():
            before = original(batch.ids)
            wanted_text = original.text_logits(before[has_text]).float().log_softmax(-1)
            wanted_codes = original.code_logits(before[speaks]).float().log_softmax(-1)
    total = F.kl_div(text, wanted_text, log_target=True, reduction="sum") / max(1, len(text))
    weights = STREAM_WEIGHTS[1:] * (batch.codes[speaks] != NO_TARGET)
    by_code = F.kl_div(codes, wanted_codes, log_target=True, reduction="none").sum(-1)
    return total + (by_code * weights).sum() / weights.sum().clamp(min=1)


def train(
    network: Network, corpora: Mapping[str, Corpus], rows: Mapping[str, int], steps: int, peak: float = PEAK
) -> Iterator[dict[str, float]]:
    """Train the network in place; yield each task's loss at each step. `rows` are numbers of rows per step."""
    original = deepcopy(network).requires_grad_(False)
    optimiser = Optimiser(network.train())
    rng = np.random.default_rng(1)
    choices = {task: corpora[task].choices(rows[task], rng) for task in corpora}
    for step in range(steps):
        found = {}
        optimiser.zero_grad()
        for task, sequences in corpora.items():
            chosen = next(choices[task])
            if task in WEIGHTS:
                total = losses(network, sequences.batch(chosen), 0.0, TEXT_WEIGHTS[task]).total
                loss = total * (WEIGHTS[task] / TEXT_WEIGHTS[task])
            else:
                null = rng.random(len(chosen)) < UNCONDITIONAL if task == "speech" else None
                loss = divergence(network, original, sequences.batch(chosen, null)) * DIVERGENCE_WEIGHTS[task]
            loss.backward()
            found[task] = loss.item()
        falling = max(0.0, (step / steps - FLAT) / (1 - FLAT))
        scale = peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))
        optimiser.step(scale * min(1.0, (step + 1) / WARM_UP))
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's data files")
    parser.add_argument("--scripts", type=Path, required=True, help="folder that `scripts` and `cut_teacher` wrote")
    parser.add_argument("--shards", type=Path, required=True, help="folder that `synthesise` wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, help="exported checkpoint, with its codec")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--share", type=float, default=0.75, help="how far the weights move towards the trained ones")
    parser.add_argument("--utterances", type=int, default=2560, help="number of texts that the model speaks")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    network = load_exported(arguments.checkpoint)
    codec = load_tiny(arguments.checkpoint)
    rng = np.random.default_rng(0)
    scripts = read_scripts(arguments.scripts / SCRIPTS)
    examples, definitions = wordnet(arguments.wordnet)
    held_out = set(everyday(examples))
    taught = [text for text in examples if text not in held_out]
    plain = plain_texts(taught, definitions, random.Random(3))
    drawn = texts(taught, definitions, random.Random(4), 0.3)
    avoid = {*domain_sentences(), *open_sentences(), *(text.lower() for text in held_out)}
    reader = Reader()
    own = own_speech(network, scripts_of(reader, plain[: arguments.utterances], avoid))
    audio = ShardEncoder(codec, Head(arguments.scripts, "cpu"), "cpu")
    shards = sorted(arguments.shards.glob("shard_????.npz"))[:7]
    long = scripts_of(reader, [sentences for sentences in drawn if len(" ".join(sentences)) >= LONG], avoid)
    reading = partial(builders.g2p, voice=VOICE)
    corpora = {
        "own": corpus(own_recordings(own, codec, rng), builders.asr, False),
        "teacher": teacher_recordings(shards, audio, codec, rng),
        "speech": corpus(own, builders.tts, True),
        "reading": texts_alone(scripts, reading),
        "long": texts_alone(long, reading),
        "spelling": texts_alone(scripts[:8000], builders.spell),
    }
    for step, found in enumerate(train(network, corpora, ROWS, arguments.steps)):
        print(step, *(f"{task} {loss:.4f}" for task, loss in found.items()), flush=True)
    before = load_exported(arguments.checkpoint).state_dict()
    weights = {name: before[name].lerp(weight, arguments.share) for name, weight in network.state_dict().items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = asdict(network.model.config)
    torch.save({"network": weights, "config": config}, arguments.out / "network.pt")


if __name__ == "__main__":
    main()
