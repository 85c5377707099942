"""Rules of the delay slots: pure functions of a row's state, which numpy, torch and Triton execute (`engine.rules`).

`delay_start` is the position of the first delay id; negative for none. `since` is the number of rows since then.
"""
# mypy: allow-untyped-defs

from stretto.engine.rules import where


def rows_since(position, delay_start):
    """Return the number of rows since the first delay id; 0 if there is none yet."""
    return where(delay_start < 0, 0, position - delay_start)


def slot_token(token, frame, min_rows, since, num_codebooks, slot, delay, end):
    """Return the text id: the sampled one up to the first delay id, and then the delay id or the end.

    Before `min_rows`, a sampled delay id becomes a slot.
    """
    token = where((token == delay) & (frame < min_rows), slot, token)
    return where(since > 0, where(since >= num_codebooks, end, delay), token)


def slot_code(code, frame, since, codebook, pad):
    """Return the id of a codebook: its pad before its first frame and after its last one, and otherwise `code`."""
    return where((frame < codebook) | (since > codebook), pad, code)


def follow_delay(is_delay, position, delay_start):
    """Return `delay_start` after an audio row. `is_delay` is True if the row has the delay id."""
    return where(is_delay & (delay_start < 0), position, delay_start)
