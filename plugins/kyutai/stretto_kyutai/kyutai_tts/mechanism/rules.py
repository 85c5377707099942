"""Rules of the words that the model requests: functions of a row's state, as in `engine/rules.py`.

`script` is a `WordScript`, and `remaining` to `end` are the state (`WordScript.columns`).
"""
# mypy: allow-untyped-defs

from stretto.engine.rules import where


def ask_for_word(token, in_audio, remaining, forced, main_at, main_end, taken, num_words, script):
    """Return two flags: True if the row requests a word, and True if the row takes one (word number `taken`)."""
    is_waiting = (main_at < main_end) | (forced > 0)
    asks = in_audio & (is_waiting == 0) & ((token == script.new_id) | (remaining <= 0))
    return asks, asks & (taken < num_words)


def take_word(
    asks, takes, word_end, padding, ahead_start, ahead_end, position, remaining, forced, main_end, second_at,
    second_end, taken, end, script,
):  # fmt: skip
    """Return `remaining`, `forced`, `main_end`, `second_at`, `second_end`, `taken` and `end` after a row, and `marks`.

    `word_end`, `padding`, `ahead_start` and `ahead_end` are the word that the row takes (`track.TokenizedWord`).
    `marks` is True if the row begins a word, or, with `ahead`, is the first one that asks when no word is left.
    """
    begins = takes & (word_end > main_end)  # otherwise, the word is a break
    shows = begins & (ahead_end > ahead_start)
    second_at = where(shows & (second_at == second_end), ahead_start, second_at)
    second_end = where(shows, ahead_end, second_end)
    ends = asks & (takes == 0) & (end < 0)
    marks = begins
    if script.ahead > 0:
        marks = begins | ends
    forced = where(takes, padding, forced)
    remaining = where(begins, script.max_padding, remaining)
    forced = where((marks == 0) & (forced > 0), forced - 1, forced)
    remaining = where((marks == 0) & (remaining > 0), remaining - 1, remaining)
    main_end = where(begins, word_end, main_end)
    end = where(ends, position, end)
    return remaining, forced, main_end, second_at, second_end, taken + takes, end, marks


def word_ids(
    asks, marks, main_token, next_token, second_token, main_at, main_end, second_at, second_end, no_second, script
):
    """Return stream 0 and the second stream of a row (`no_second` if empty), and the new `main_at` and `second_at`.

    `main_token` and `next_token` are the tokens at `main_at` and after it, and `second_token` the one at `second_at`.
    """
    has_main = main_at < main_end
    if script.ahead == 0:
        has_main = has_main & (marks == 0)  # the first token follows in the next row
    main = where(has_main, main_token, where(asks, script.wish_id, script.pad_id))
    main_at = main_at + has_main
    second = main * 0 + no_second
    if script.ahead == 0:
        main = where(marks, script.new_id, main)
    else:  # within a word, `new_id` is an unknown character: the next token or a pad replaces it on stream 0
        skips = has_main & (marks == 0) & (main == script.new_id)
        has_next = skips & (main_at < main_end)
        main = where(skips, where(has_next, next_token, script.pad_id), main)
        main_at = main_at + has_next
        marks = marks | skips
        has_second = (marks == 0) & (second_at < second_end)
        second = where(marks | has_second, script.second_base + where(marks, script.new_id, second_token), second)
        second_at = second_at + has_second
    return main, second, main_at, second_at
