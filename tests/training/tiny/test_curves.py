"""Reading the training log."""

from pathlib import Path

from training.tiny.curves import read_log


def test_repeated_log_step_keeps_the_last_value(tmp_path: Path) -> None:
    lines = ["step 50 s 10 tts.text 3.0", "step 100 s 20 tts.text 2.0", "noise", "step 100 s 19 tts.text 1.5"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    log = read_log(tmp_path / "train.log")
    assert log["s"].tolist() == [10, 19]
    assert log["tts.text"].tolist() == [3.0, 1.5]
