"""Tables of figures."""

from training.tiny.report import table


def test_report_averages_and_lists_seeds() -> None:
    base = {"test_set": "open", "guidance_scale": None, "seed": None}
    speech = [
        {**base, "what": "speech", "guidance_scale": 1.5, "seed": s, "value": v} for s, v in enumerate((1.0, 3.0))
    ]
    lines = table([{**base, "what": "original", "value": 10.28}, *speech]).splitlines()
    assert lines[0] == "| per cent | open |"
    assert lines[2] == "| the teacher itself | 10.3 |"
    assert lines[3] == "| the model's speech, guidance 1.5 | **2.0** (1.0, 3.0) |"
