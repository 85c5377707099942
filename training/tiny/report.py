"""Print `wer.jsonl` as the table for docs/bundled_model.md: python -m training.tiny.report FILE"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

NAMES = {
    "original": "the teacher itself",
    "codec": "after the codec",
    "speech": "the model's speech",
    "phonemes": "phoneme text (token errors)",
    "transcription": "transcripts of the teacher",
}


def rows(records: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, list[float]]]:
    """Return the values of all seeds by (quantity, guidance scale or 0) and then by set."""
    found: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        what = record["what"], record["guidance_scale"] or 0.0
        found[what][record["test_set"]].append(record["value"])
    return found


def cell(values: list[float]) -> str:
    """Return the mean, followed by the individual values if there are several."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"**{mean}** ({', '.join(f'{value:.1f}' for value in values)})"


def table(records: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one column per set."""
    found = rows(records)
    columns = sorted({column for row in found.values() for column in row})
    lines = [
        "| per cent | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for what, name in NAMES.items():
        for key in sorted(key for key in found if key[0] == what):
            label = f"{name}, guidance {key[1]:g}" if key[1] else name
            lines.append(f"| {label} | " + " | ".join(cell(found[key][column]) for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
