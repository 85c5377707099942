"""Hand-overs of a request: the files of the processes, and the times that belong to its first audio."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.hops import walk
from stretto.hops import FOLDER, Hop, ignore, read_stamps, stamp, stamps_in

ORDER = list(Hop)


def test_nothing_is_written_without_the_variable() -> None:
    assert FOLDER not in os.environ
    assert stamp is ignore


def test_each_process_writes_its_own_file_on_one_clock(tmp_path: Path) -> None:
    code = "from stretto.hops import Hop, stamp; stamp(Hop.ENGINE_ACCEPTS); stamp(Hop.STEP_ENDS)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {FOLDER: str(tmp_path)}, check=True)
    stamps_in(tmp_path)(Hop.ROW_ARRIVES)
    assert len(list(tmp_path.iterdir())) == 2
    stamps = read_stamps(tmp_path)
    assert [hop for _, hop in stamps] == [Hop.ENGINE_ACCEPTS, Hop.STEP_ENDS, Hop.ROW_ARRIVES]
    assert stamps == sorted(stamps)


def test_a_walk_follows_the_chunk_with_the_first_audio() -> None:
    """A chunk of text comes first, and a second chunk with audio is sent while the first one is decoded."""
    stamps = [(10.0 + index, hop) for index, hop in enumerate(ORDER[1:8])]
    text = [Hop.STEP_ENDS, Hop.ROW_ARRIVES, Hop.CHUNK_IS_CUT, Hop.CHUNK_IS_SENT, Hop.DECODER_ACCEPTS]
    stamps += [(20.0 + index, hop) for index, hop in enumerate([*text, Hop.DECODER_ANSWERS, Hop.PROXY_READS_ANSWER])]
    stamps += [(30.0 + index, hop) for index, hop in enumerate([*text, Hop.BATCH_IS_LAUNCHED])]
    stamps += [(36.0 + index, hop) for index, hop in enumerate(text)]
    stamps += [(42.0, Hop.SAMPLES_ARRIVE), (43.0, Hop.DECODER_ANSWERS), (44.0, Hop.PROXY_READS_ANSWER)]
    stamps += [(99.0, hop) for hop in ORDER]
    found = walk(stamps, 9.0, 45.0)
    assert [found[hop] for hop in ORDER] == [0, *range(1, 8), *range(21, 27), 33, 34, 35, 36]
