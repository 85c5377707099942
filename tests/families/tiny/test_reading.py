"""Kinds of written text that are not read letter by letter: each with its words, or digit by digit."""

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.families.tiny.family import CHARACTERS
from stretto.families.tiny.numbers import cardinal, digits
from stretto.families.tiny.prompt import read_aloud
from stretto.families.tiny.text import normalise, words_of
from tests.interpreter_steps import count_steps

POWERS = {
    "10⁶ and 10⁻³": "ten to the power of six and ten to the power of minus three",
    "x^2 + y^3 = z^n": "ex squared plus why cubed equals zee to the power of en",
    "2**10 and x**2": "two to the power of ten and ex squared",
    "6.02×10²³": "six point zero two times ten to the power of twenty three",
    "(a+b)^2, 2^(n+1), e^{-x}": "a plus bee, squared, two to the power of en plus one, ee to the power of minus ex",
    "5 m², 3 cm³, 9.8 m/s²": "five square meters, three cubic centimeters, nine point eight meters per second squared",
    "5 µg/m³, price per m²": "five micrograms per cubic meter, price per square meter",
    "①② then ⑩ and ❶": "one, two, then ten, and one",
    "H₂O and CO₂, x₁": "aitch two oh and see oh two, ex one",
    "Na⁺, Ca²⁺": "na plus, ca two plus",
    "a word¹² here": "a word here",
    "⅞ cup, 1⅝ in, 2½-hour": "seven eighths cup, one and five eighths in, two and one half hour",
    "2ⁿᵈ and 3º": "second and third",
    "E=mc²": "ee equals em see squared",
    "10**-3, 3^2^2": "ten to the power of minus three, three to the power of two squared",
    "3·10⁸ m/s, 1.2x10^3, e^(−t/τ)": "three times ten to the power of eight meters per second, "
    "one point two times ten cubed, ee to the power of minus tee over tau",
    "m³/s and W/m²": "cubic meters per second and watts per square meter",
}
SIGNS = {
    "UTC-8, GMT+2, UTC+5:30": "you tee see minus eight, gee em tee plus two, you tee see plus five thirty",
    "grade A-, B+, O- blood, AB+": "grade ay minus, bee plus, oh minus blood, ay bee plus",
    "−½, -½": "minus one half, minus one half",
    "-5 °C, −5": "minus five degrees celsius, minus five",
    "n-1, x-1, x - 1 = 2": "en minus one, ex minus one, ex minus one equals two",
    "3 − 5 = −2, x−y, −x": "three minus five equals minus two, ex minus why, minus ex",
    "-10 to -5, -5--1, −5–10": "minus ten to minus five, minus five to minus one, minus five to ten",
    "y = -2x - 5, 2x^2 - 3x + 1": "why equals, two ex minus five, two ex squared minus three ex plus one",
    "-5…-10, -549 941": "minus five to minus ten, minus five hundred and forty nine thousand nine hundred "
    "and forty one",
    "T-shirt, F-16, COVID-19, 5-10": "tee shirt, eff sixteen, covid nineteen, five to ten",
    "2026-11-28T06:18:27+01:00": "november the twenty eighth, twenty twenty six, six eighteen and twenty seven seconds "
    "plus one",
}
PLACES = {
    "₹1,00,000 and ₹12,34,567.50": "one hundred thousand rupees and one million two hundred and thirty four thousand "
    "five hundred and sixty seven rupees and fifty paise",
    "1 234, 1\u202f234, 1\u00a0234 and 1'234": "one thousand two hundred and thirty four, " * 2
    + "one thousand two hundred and thirty four and one thousand two hundred and thirty four",
    "1.234,56 €": "one thousand two hundred and thirty four euros and fifty six cents",
    "1.234.567,89": "one million two hundred and thirty four thousand five hundred and sixty seven point eight nine",
    "0,5 %, 3,14 and 12,5 km": "zero point five percent, three point one four and twelve point five kilometers",
    "1,5 million": "one point five million",
    "(3,4), rows 1,2 and 1,2,3": "three, four, rows one, two and one, two, three",
    "1,2345,6 and 12,345,6": "one, two three four five, six and one two, three four five, six",
    "3.141 592 653": "three point one four one five nine two six five three",
    "100s of people, 10s of thousands": "hundreds of people, tens of thousands",
    "the '90s, '90s, 1990s-2000s, 90s music": "the nineties, nineties, "
    "nineteen nineties to two thousands, nineties music",
    "a timeout of 30s": "a timeout of thirty seconds",
    "1,000th and 112th": "one thousandth and one hundred and twelfth",
    "100 200 300 or 555 123": "one hundred, two hundred, three hundred or five five five, one two three",
    "192.168.100 and 1.200.150": "one nine two point one six eight point one zero zero and "
    "one point two zero zero point one five zero",
    "1.2345.6, 120.0.6099.109": "one point two three four five point six, "
    "one two zero point zero point six zero nine nine point one zero nine",
    "83.166.711, 1.000.000, 1.200.150 €": "eighty three million one hundred and sixty six thousand seven hundred and "
    "eleven, one million, one million two hundred thousand one hundred and fifty euros",
    "1.000 people, 12.345 km": "one thousand people, twelve point three four five kilometers",
    "1.000–2.000 €, €1.000-2.000": "one thousand to two thousand euros, one thousand to two thousand euros",
    "Rs.1,00,00,000/- or kr.1.500": "ten million rupees or kr. one thousand five hundred",
    "123.456.789-09, (11) 98765-4321": "one two three, four five six, seven eight nine, zero nine, "
    "one one nine eight seven six five four three two one",
    "1e-3 mol/L, −∞, 5′ 11″": "one times ten to the minus three moles per liter, minus infinity, five feet eleven",
    "₹1,00,000–2,00,000": "one hundred thousand to two hundred thousand rupees",
    "$525 922, £12·50, 3·4": "five hundred and twenty five thousand nine hundred and twenty two dollars, "
    "twelve pounds and fifty pence, three times four",
    "The price is ¥1万, 3.5万 or 3億5000万円.": "the price is ten thousand yen, thirty five thousand or "
    "three hundred and fifty million yen.",
    "€1,5 Mio., 2 Mrd.": "one point five million euros, two billion",
    "1:50,000, ¼-½, 5…10": "one to fifty thousand, one quarter to one half, five to ten",
    "9780306406157": "nine seven eight zero three zero six four zero six one five seven",
}
YEARS = {
    "Orwell's 1984. Copyright 2024": "orwell's nineteen eighty four. copyright twenty twenty four",
    "the 1984 election, 1984 apples": "the nineteen eighty four election, "
    "one thousand nine hundred and eighty four apples",
    "1914-18, 2010-11, 2026-05": "nineteen fourteen to eighteen, twenty ten to eleven, may twenty twenty six",
    "Louis XIV, MCMXCIV, page xii, (iii)": "louis the fourteenth, nineteen ninety four, page twelve, three",
    "the XXI century, Super Bowl LVIII": "the twenty first century, super bowl fifty eight",
    "Act III, Scene ii, Pope John XXIII": "act three, scene two, pope john the twenty third",
    "MIX it, an IV drip, XL, I am": "mix it, an eye vee drip, ex el, i am",
    "the 2024/25 season, 80s and 90s": "the twenty twenty four to twenty five season, eighties and nineties",
    "II. Methods. III. Results": "two. methods. three. results",
    "on 11/28, Nov '26": "on november twenty eighth, november twenty six",
}
IDENTIFIERS = {
    "550e8400-e29b-41d4-a716-446655440000": "five five zero ee eight four zero zero, and so on",
    "commit a94a8fe5ccb19ba61c4c0873d391e987982fbbd3": "commit ay nine four ay eight eff ee five, and so on",
    "commit 9f8e7d6": "commit nine eff eight ee seven dee six",
    "00:1B:44:11:3A:B7": "zero zero, one bee, four four, one one, three ay, bee seven",
    "192.168.0.1:8080": "one nine two dot one six eight dot zero dot one colon eight zero eight zero",
    "10.0.0.0/8, ::1": "one zero dot zero dot zero dot zero slash eight, colon colon one",
    "v1.2.3, v2.0.0-rc1": "version one point two point three, version two point zero point zero release candidate one",
    "1-800-FLOWERS": "one eight hundred, flowers",
    "call 1-800-273-TALK": "call one eight hundred, two seven three, talk",
    "report_final.pdf, main.py": "report underscore final dot pee dee eff, main dot pee why",
    r"C:\Users\Ann": "see colon backslash users backslash ann",
    "/usr/local/bin, ~/.bashrc": "slash usr slash local slash bin, tilde slash dot bashrc",
    "PIN 4821, order #48213": "pin four eight two one, order four eight two one three",
    "+1 (555) 010-9999, 0171 2345678": "plus one five five five zero one zero nine nine nine nine, "
    "zero one seven one, two three four five six seven eight",
    "DE89 3704 0044 0532 0130 00": "dee ee eight nine, three seven zero four, zero zero four four, "
    "zero five three two, zero one three zero, zero zero",
    "#FF5733, AB12345": "hash eff eff five seven three three, ay bee one two three four five",
}
UNITS = {
    "5 kJ, 3 µF, 10 kΩ, 5 GiB": "five kilojoules, three microfarads, ten kiloohms, five gibibytes",
    "4 mA, 9 kPa, 3 mol": "four milliamps, nine kilopascals, three moles",
    "USD 50, 50 EUR, CHF 1'000": "fifty you ess dollars, fifty euros, one thousand swiss francs",
    "R$ 50, US$5, A$3.50": "fifty reals, five you ess dollars, three australian dollars and fifty cents",
    "500 kr, Rs. 500": "five hundred kroner, five hundred rupees",
    "51.5074° N, 0.1278° W": "fifty one point five zero seven four degrees north, "
    "zero point one two seven eight degrees west",
    "40°26′46″N": "forty degrees twenty six minutes forty six seconds north",
    "15.6″, 6′2″": "fifteen point six inches, six feet two",
    "14h30, 00:00": "fourteen thirty, zero hundred",
    "km/h, kg/m³": "kilometers per hour, kilograms per cubic meter",
    "10 ㎏, 5 ㎞ and 3㎡": "ten kilograms, five kilometers and three square meters",
    "20 L/100 km, 5 N·m, 2 qt": "twenty liters per one hundred kilometers, five newton meters, two quarts",
    "∆x, ∀x, ∅, ∛27, a ≢ b": "delta ex, for all ex, empty set, cube root twenty seven, a is not identical to bee",
    "(a+b)/(c+d), max. 5, min. 3": "a plus bee, over, see plus dee, maximum five, minimum three",
    "√2, π≈3.14, ∑": "square root of two, pi about three point one four, sum",
}
SENTENCES = {
    "Apples, etc. Then we left.": "apples, et cetera. then we left.",
    "At 5 p.m. The rain came. At 5 p.m. Monday.": "at five pee em. the rain came. at five pee em monday.",
    "In the U.S. The end. The U.S. Army.": "in the you ess. the end. the you ess army.",
    "Plan B. It works. I saw Dr. Smith.": "plan bee. it works. i saw doctor smith.",
    "12 Main St. Springfield, on Elm St. The end": "twelve main street springfield, on elm street. the end",
    "Apple Inc. They pay. Bring milk, etc.": "apple incorporated. they pay. bring milk, et cetera.",
    "an exam-\nple, well-\nknown": "an example, well known",
}
DECORATION = {
    "shrug ¯\\_(ツ)_/¯ ok": "shrug okay",
    "flip (╯°□°)╯︵ ┻━┻ now": "flip, now",
    "ಠ_ಠ what (づ｡◕‿‿◕｡)づ": "what",
    "bear ʕ•ᴥ•ʔ hi (´・ω・`)": "bear hi",
    "a † b ‡ c ↓ d ¤": "a bee see dee",
    "nice :-) :D <3 xD ^_^ T_T": "nice",
    "Ask Σωκράτης about 李明": "ask sokratis about liming",
    "║ box ╠══╣ ★ ▓▓ end": "box end",
    "α+β, Δt, π/2": "alpha plus beta, delta tee, pi over two",
}
OTHERS = {
    "2^32-1, 3x+2y=7": "two to the power of thirty two minus one, three ex plus two why equals seven",
    "0800-123456, 030/901820": "zero eight zero zero one two three four five six, "
    "zero three zero nine zero one eight two "
    "zero",
    "Ratio of 1:2.5, 1:32.608": "ratio of one to two point five, one thirty two point six zero eight",
    "$.50, ₹50 lakh, 1.2 kgs": "fifty cents, fifty lakh rupees, one point two kilograms",
    "1960s–70s, AD 79, 1..5, nº 5": "nineteen sixties to seventies, ay dee seventy nine, one to five, number five",
    "12' x 10', 1800 hours, H.264": "twelve feet by ten feet, eighteen hundred hours, "
    "aitch dot two hundred and sixty four",
    "Пётр met Ελένη and 王 in Kraków": "petr met eleni and wang in krakow",
    "2 500,00 € or 12.500 kr": "two thousand five hundred euros or twelve thousand five hundred kroner",
}
KINDS = OTHERS | POWERS | SIGNS | PLACES | YEARS | IDENTIFIERS | UNITS | SENTENCES | DECORATION


@pytest.mark.parametrize("text", KINDS, ids=repr)
def test_a_kind_of_text_is_read_as_a_reader_would(text: str) -> None:
    assert read_aloud(text) == KINDS[text]


def indian(count: int) -> str:
    head, tail = str(count)[:-3], str(count)[-3:]
    return f"{re.sub(r'(?<=[0-9])(?=(?:[0-9]{2})+$)', ',', head)},{tail}" if head else tail


GROUPINGS = ("{:,}", "{:_}", "\u00a0", "\u202f", "\u2009", "'", "’", ".", "indian")


@given(st.integers(0, 10**12), st.sampled_from(GROUPINGS))
def test_integers_in_any_grouping_are_read_right_or_digit_by_digit(count: int, grouping: str) -> None:
    plain = f"{count:,}"
    if grouping == "indian":
        text = indian(count)
    elif grouping == ".":
        text = plain.replace(",", ".") + " €"
    else:
        text = grouping.format(count) if "{" in grouping else plain.replace(",", grouping)
    spoken = " ".join(words_of(normalise(text, CHARACTERS))).removesuffix(" euros").removesuffix(" euro")
    assert spoken in (cardinal(count), digits(str(count)), spoken_year(count))


def spoken_year(count: int) -> str:
    """Return the words of a year, which are those of the count in pairs of digits."""
    pairs = [cardinal(count // 100), "hundred" if count % 100 == 0 else cardinal(count % 100)]
    return " ".join(pairs) if 1100 <= count < 2100 and count % 1000 >= 10 else ""


@given(st.integers(0, 10**9), st.integers(0, 999), st.sampled_from("\u00a0.'\u202f"))
def test_decimal_commas_are_points(whole: int, decimals: int, grouping: str) -> None:
    spoken = " ".join(words_of(normalise(f"{whole:,}".replace(",", grouping) + f",{decimals:03}", CHARACTERS)))
    if "," in f"{whole:,}":
        assert spoken == f"{cardinal(whole)} point {digits(f'{decimals:03}')}"


@given(st.text(st.sampled_from("0123456789.,' \u00a0_"), min_size=1, max_size=24))
def test_every_digit_of_an_unknown_form_is_spoken_or_in_a_number(text: str) -> None:
    spoken = normalise(f"It is {text}!", CHARACTERS)
    assert bool(re.search(r"\d", text)) == (len(words_of(spoken)) > 2)


SYMBOLS = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(character)[0] in "SP" and character.isprintable()
]


@given(st.text(st.sampled_from(SYMBOLS), max_size=20), st.text(st.sampled_from(SYMBOLS), max_size=20))
def test_no_decoration_causes_a_refusal(before: str, after: str) -> None:
    words = words_of(read_aloud(f"{before} plain words {after}"))
    assert {"plain", "words"} <= {*words}


FACE_LETTERS = "ツಠ益ლづノДωᴥʕʔ"
FACE_SIGNS = "¯_/()^°•◕‿｡・´`｀;=*"


@given(
    st.text(st.sampled_from(FACE_SIGNS), min_size=1, max_size=4), st.sampled_from(FACE_LETTERS), st.sampled_from("_.‿◕")
)
def test_faces_are_silent(signs: str, letter: str, mouth: str) -> None:
    assert words_of(read_aloud(f"plain ({signs}{letter}{mouth}{letter})◕ words")) == ("plain", "words")


@pytest.mark.parametrize(
    "unit", ["1 ", "1,", "-1", "^2", "a1", "0x", "(1", "1.", "¯_(ツ)", "I", "1:", "a-", "@a.", "/a"]
)
def test_reading_time_is_bounded(unit: str) -> None:
    assert count_steps(lambda: normalise((unit * 300)[:300], CHARACTERS)) < 60_000
