"""Formulas become words; faces and stage directions are left out; words around elements and at line ends stay right."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto_client.latex import LatexFilter
from tests.client import reading

read = partial(reading.read, tags=())  # the model renders none
FORMULAS = {
    r"Let $x^2$ and $\frac{1}{2}$ be.": "Let x squared and 1/2 be.",
    r"$E = mc^2$": "E equals m c squared",
    r"\(a^2 + b^2 = c^2\) holds": "a squared plus b squared equals c squared holds",
    r"\[\int_0^1 x^2 \, dx = \frac{1}{3}\]": "integral from 0 to 1 of x squared d x equals 1/3",
    "$$\n\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}\n$$ done": (
        "sum from i equals 1 to n of i equals n times n plus 1 over 2 done"
    ),
    r"x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}.": (
        "x = minus b plus or minus square root of b squared minus 4 a c over 2 a."
    ),
    r"\alpha, \beta and \gamma": "alpha, beta and gamma",
    r"\begin{align} a &= b \\ c &= d \end{align} ok": "a equals b, c equals d ok",
    r"$90^\circ$, $\sqrt[3]{8}$ and $\lim_{x \to 0} \sin x$": "90 degrees, cube root of 8 and limit as x to 0 of sin x",
    r"$\text{speed} = \frac{d}{t}$, $f(x)$, $a_i$": "speed equals d over t, f of x, a sub i",
    r"$\mathbb{R}^n$, $10\%$, $p < 0.05$": "R to the power of n, 10 percent, p less than 0.05",
    r"$\log_2 8 = 3$": "log base 2 of 8 equals 3",
    r"$1{,}000$, $0{,}5$, $1\,000.5$, $\{1,2\}$": "1,000, 0.5, 1,000.5, 1, 2",
    r"$P(A|B)$, \textbf{a bold} and \emph{word}s in \section{Intro}\cite{x}.": (
        "P of A given B, a bold and words in Intro."
    ),
    r"10**-3 and 2**-1": r"10**-3 and 2**-1",
    r"$A^{-1}$, $\binom{n}{k}$, $n!$": "A to the power of minus 1, n choose k, n factorial",
}
LITERAL = (
    "It costs $5 and $10.",
    "$5 million, $6k or 5$ and 6$",
    r"C:\temp and \Users\me",
    "US$5, A$6 and $HOME/$USER",
    "$$ and $",
)
LEFT_OUT = {
    "Well ¯\\_(ツ)_/¯. Fine": "Well. Fine",
    "ಠ_ಠ hm (づ｡◕‿‿◕｡)づ ok": "hm ok",
    "ʕ•ᴥ•ʔ end": "end",
    "¥1万 now ~~~ wave ~~~": "¥1万 now ~~~ wave ~~~",
    "~~~ wave ~~~": "~~~ wave ~~~",
    "Ask 李明 (東京) or Σωκράτης.": "Ask 李明 (東京) or Σωκράτης.",
    "*sighs* I can't. She *laughs* at it.": "I can't. She laughs at it.",
    "Oh *clears throat* well": "Oh well",
    "[laughs] Hi (pause) there (laughs softly).": "Hi there.",
    "Ha (laughing gas) and (waves)": "Ha (laughing gas) and (waves)",
    "He was *laughing* at me. *laughing* Oh.": "He was laughing at me. Oh.",
    "*smiles warmly at her* Yes, (nervously laughs) no": "Yes, no",
    "(slowly walking home) I *really* mean (it)": "(slowly walking home) I really mean (it)",
}
WRAPPED = (
    "The meeting was held in\nParis with the friends\nof Anna and some other\nPeople from London and\nRome.",
    "The quick brown fox jumped over the\nlazy dog that was sleeping near the\n"
    "Thames in London during a hot\nsummer day",
    "We sat by the\nfire until the\nmoon was up over\nNew Hampshire and\nMaine.",
    "The temperature is\n-5 degrees outside",
    "When we had reached the river, Mr\nSmith told us about the boats that\nhad left.",
)
COMPLETE = {
    "Milk\nEggs\nBread\nButter": "Milk.\nEggs.\nBread.\nButter",
    "Buy a new phone charger cable\nCall the dentist about Monday": (
        "Buy a new phone charger cable.\nCall the dentist about Monday"
    ),
}
CUT = {
    "an exam-\nple, a well-\nknown, state-of-the-\nart one": "an example, a well-known, state-of-the-art one",
    "soft exam\u00ad\nple": "soft example",
    "5-\n6, a-\nB, x -\ny": "5-\n6, a-\nB, x -\ny",
}
SSML = {
    "Good morning<mark name='x'/>How are<voice name='a'>you</voice>now": "Good morning How are you now",
    "One<emphasis>Four</emphasis>five!<sub alias='doctor'>Dr.</sub>Smith": "One Four five! doctor Smith",
    "<sub alias='un'>u</sub>able room<say-as interpret-as='digits'>12</say-as>": "unable room 1 2",
    "<p>Good morning</p>How <w>are</w><w>you</w><lang xml:lang='en'>Fine</lang>.": "Good morning. How are you Fine.",
    "<emphasis>morning</emphasis>How, <prosody pitch='low'>Yes</prosody>no": "morning How, Yes no",
}


@pytest.mark.parametrize("text", FORMULAS | LEFT_OUT | CUT | COMPLETE, ids=repr)
def test_what_is_seen_or_acted_is_not_read(text: str) -> None:
    spoken = (FORMULAS | LEFT_OUT | CUT | COMPLETE)[text]
    assert read(text).strip() == read(text, sizes=[1]).strip() == spoken


@pytest.mark.parametrize("text", [*LITERAL, *WRAPPED], ids=repr)
def test_prices_paths_and_wrapped_lines_are_unchanged(text: str) -> None:
    assert read(text) == read(text, sizes=[1]) == text


@pytest.mark.parametrize("inner", SSML, ids=repr)
def test_words_around_elements_stay_apart(inner: str) -> None:
    for sizes in ([1], [7], [1000]):
        assert " ".join(read(f"<speak>{inner}</speak>", sizes=sizes).split()) == SSML[inner]


@given(st.integers(24, 60), st.integers(0, 9))
def test_text_wrapped_at_any_width_has_no_full_stops_inside_sentences(width: int, start: int) -> None:
    words = (
        "in the old town near Vienna we met our friend Anna who had come from the coast and told us about the long "
        "journey by train and the people she had seen there with their children and their bags"
    ).split()
    lines, line = list[str](), ""
    for word in words[start:]:
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    text = "\n".join([*lines, line])
    assert read(text) == read(text, "none") == text


def test_deep_formulas_end() -> None:
    reader = LatexFilter()
    assert reader.add("$" + "{" * 150 + "x" + "}" * 40 + "$") + reader.end() is not None
    assert "\\" not in reader.add(r"$\frac{\frac{\frac{1}{2}}{3}}{4}$") + reader.end()
