"""Numbers become the same words as in a slow implementation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.families.tiny.numbers import cardinal, clock, code, digits, number, ordinal, quantity, write_out, year


@given(st.integers(0, 999_999))
def test_cardinal_numbers_match_the_reference(count: int) -> None:
    assert cardinal(count) == slow_cardinal(count)
    assert number(f"{count:,}") == slow_cardinal(count)


def slow_cardinal(count: int) -> str:
    small = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ).split()
    tens = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
    if count < 20:
        return small[count]
    if count < 100:
        return tens[count // 10] + (f" {small[count % 10]}" if count % 10 else "")
    if count < 1000:
        rest = count % 100
        return f"{small[count // 100]} hundred" + (f" and {slow_cardinal(rest)}" if rest else "")
    thousands, rest = divmod(count, 1000)
    joint = "" if not rest else " and " if rest < 100 else " "
    return f"{slow_cardinal(thousands)} thousand{joint}{slow_cardinal(rest) if rest else ''}"


def test_single_number_readings() -> None:
    assert ordinal(30) == "thirtieth"
    assert year(2005) == "two thousand and five"
    assert digits("0-45") == "zero four five"
    assert quantity("1", "feet") == "one foot"
    assert write_out("1234,567 km").split(" , ")[1].strip() == "five hundred and sixty seven kilometers"
    assert quantity("2.5", "miles per hour") == "two point five miles per hour"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("105", "one oh five"),
        ("747", "seven forty seven"),
        ("100", "one hundred"),
        ("1000", "one thousand"),
        ("1200", "twelve hundred"),
        ("2490", "twenty four ninety"),
        ("1005", "ten oh five"),
        ("0215", "zero two one five"),
        ("12345", "one two three four five"),
    ],
)
def test_flight_and_house_numbers_are_spelled_out(text: str, spoken: str) -> None:
    assert code(text) == spoken


@pytest.mark.parametrize(
    ("hours", "minutes", "suffix", "spoken"),
    [
        (9, 20, "", "nine twenty"),
        (9, 5, "", "nine oh five"),
        (9, 0, "", "nine o'clock"),
        (21, 0, "", "twenty one hundred"),
        (0, 0, "a m", "zero a m"),
        (12, 30, "p m", "twelve thirty p m"),
    ],
)
def test_clock_times_are_spelled_out(hours: int, minutes: int, suffix: str, spoken: str) -> None:
    assert clock(hours, minutes, suffix).split() == spoken.split()


@given(st.text(st.sampled_from("0123456789.,:/-$%°'+x apmMsthk"), max_size=40))
def test_numbers_are_written_out_without_digits(text: str) -> None:
    assert not any(character.isdigit() for character in write_out(text))
