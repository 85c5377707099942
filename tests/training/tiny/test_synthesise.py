"""Shards of training speech."""

import random
from pathlib import Path

import numpy as np

from stretto.families.tiny.family import PHONEMES
from training.tiny.synthesise import TAIL_HOPS, make_shard, read_sequences, read_shard, write_shard
from training.tiny.teacher import Script, Speech


class Fake:
    """Stand-in of the teacher, which gives each phoneme nine hops and the last one 60."""

    def speak(self, script: Script) -> Speech:
        ends = np.cumsum([9] * (len(script.phonemes) - 1) + [60]).astype(np.int32)
        return Speech(np.zeros((ends[-1], 256), np.float16), np.full(ends[-1], 150, np.float16), ends)


def script() -> Script:
    phonemes = tuple(PHONEMES.index(name) for name in "pau ah1 p pau".split())
    return Script("up", phonemes, (-1, 0, 0, -1), (), ())


def test_shards_have_utterances_with_short_tails_and_round_trip(tmp_path: Path) -> None:
    shard = make_shard(Fake(), [script()] * 20, random.Random(0))  # type: ignore[arg-type]
    hops = 27 + TAIL_HOPS
    assert np.diff(shard.first).tolist() == [hops] * 20
    assert shard.speak["frames"].tolist() == [-(-hops // 3)] * 20
    assert len(shard.listened) == len(shard.listen["frames"]) > 3
    write_shard(tmp_path / "shard_0000.npz", shard)
    found, sequences = read_shard(tmp_path / "shard_0000.npz"), read_sequences(tmp_path / "shard_0000.npz")
    assert np.array_equal(found.speed, shard.speed)
    for task in ("speak", "listen"):
        for name, value in getattr(shard, task).items():
            assert np.array_equal(getattr(found, task)[name], value)
            assert np.array_equal(sequences[task][name], value)
