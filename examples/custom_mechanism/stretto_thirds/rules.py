"""The rule, as a pure function of a row's state, which runs on integers, numpy and torch (`stretto.engine.rules`)."""
# mypy: allow-untyped-defs

from stretto.engine.rules import where


def repeat_code(token, frame, last_code, in_audio, first, stop):
    """Return stream 0 of a row, and `last_code` after the row.

    Args:
        token: Sampled id. An id that ends the audio is not replaced.
        frame: Index of the row in the audio.
        last_code: Code of the frame before.
        first: First code of the codebook.
        stop: Id after the last code.
    """
    is_code = (token >= first) & (token < stop)
    token = where(in_audio & is_code & (frame % 3 == 2), last_code, token)
    return token, where(in_audio, token, last_code)
