"""LaTeX formulas in a text, as English words: `$\\frac{a}{b}$` becomes "a over b…"."""

import re

MAX_MATH_CHARS = 1000  # maximum length of a formula; in longer ones, the marks are text
MAX_INLINE_CHARS = 200  # maximum length between single dollar signs, and of a formula without delimiters
MAX_DEPTH = 16  # deeper groups are left out
NAMES = {
    "times": "times", "cdot": "times", "ast": "times", "div": "divided by", "pm": "plus or minus",
    "mp": "minus or plus", "leq": "less than or equal to", "le": "less than or equal to",
    "geq": "greater than or equal to", "ge": "greater than or equal to", "lt": "less than", "gt": "greater than",
    "neq": "is not equal to", "ne": "is not equal to", "approx": "is about", "sim": "is about", "simeq": "is about",
    "equiv": "is equivalent to", "cong": "is congruent to", "propto": "is proportional to", "infty": "infinity",
    "to": "to", "rightarrow": "to", "longrightarrow": "to", "mapsto": "maps to", "implies": "implies",
    "Rightarrow": "implies", "iff": "if and only if", "Leftrightarrow": "if and only if", "leftarrow": "from",
    "in": "in", "notin": "not in", "ni": "contains", "subset": "is a subset of", "subseteq": "is a subset of",
    "supset": "is a superset of", "cup": "union", "cap": "intersection", "setminus": "without",
    "emptyset": "the empty set", "varnothing": "the empty set", "forall": "for all", "exists": "there exists",
    "partial": "partial", "nabla": "del", "circ": "degrees", "degree": "degrees", "prime": "prime", "hbar": "h bar",
    "ell": "l", "ldots": ", and so on,", "dots": ", and so on,", "cdots": ", and so on,", "land": "and", "wedge": "and",
    "lor": "or", "vee": "or", "neg": "not", "lnot": "not", "mid": "given", "perp": "is perpendicular to",
    "parallel": "is parallel to", "ln": "natural log", "exp": "exponential", "int": "integral", "iint": "integral",
    "oint": "integral", "lim": "limit", "prod": "product", "bmod": "modulo", "pmod": "modulo", "mod": "modulo",
    "therefore": "therefore", "because": "because", "Re": "real part", "Im": "imaginary part", "varepsilon": "epsilon",
    "varphi": "phi", "vartheta": "theta", "Pr": "probability", "%": "percent", "$": "dollars", "&": "and",
    "#": "number", "|": "norm", "star": "star", "dagger": "dagger", "angle": "angle", "triangle": "triangle",
}  # fmt: skip
SIGNS = {
    "=": "equals", "+": "plus", "-": "minus", "−": "minus", "*": "times", "/": "over", "<": "less than",
    ">": "greater than", "!": "factorial", "'": "prime", "≤": "less than or equal to", "≥": "greater than or equal to",
}  # fmt: skip
BOUNDED = {"sum", "prod", "int", "iint", "oint", "lim", "max", "min", "sup", "inf", "bigcup", "bigcap"}
# Commands without a sound; the text in the braces after them is read.
SILENT = set(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr middle displaystyle textstyle limits nolimits mathrm mathbf "
    "mathbb mathcal mathit mathsf mathfrak boldsymbol operatorname text textbf textit textrm mbox boxed overline "
    "underline hat bar vec tilde dot ddot widehat overbrace underbrace quad qquad hspace vspace label tag nonumber "
    "rm bf it cal hline not space phantom color textcolor".split()
)
TEXTUAL = {
    "text",
    "mathrm",
    "operatorname",
    "textbf",
    "textit",
    "textrm",
    "mbox",
}  # with words as their argument
FUNCTIONS_OF = set("fghpuFGHPOQET")  # "f(x)" is read as "f of x"
NUMERALS = {"2": "squared", "3": "cubed"}
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)*|\s+|.", re.DOTALL)
GROUP_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))")  # separator between groups of digits
DECIMAL_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d)")
PAUSE = r"(?:(?<!\d),|,(?!\d))"  # a comma that is not between digits
# The sign of conditional probabilities.
GIVEN = re.compile(r"(\b(?:P|Pr|E|p)\s?[(\[][^|()\[\]]{1,40})\|(?=[^|()\[\]]{1,40}[)\]])")
ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{[A-Za-z*]{1,20}\}(?:\{[lcr|]{0,20}\})?")
# Words that show that a text between dollar signs, or between escaped brackets, is no formula.
PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!sin\b|cos\b|tan\b|log\b|exp\b|max\b|min\b|lim\b|mod\b|gcd\b)(?:[A-Za-z]{3,}"
    r"|(?:is|to|of|or|at|on|an|as|by|we|he|it|so|no|us|if|do|go|my|up|am|me)\b)"
)
QUOTED = re.compile(r"\\[A-Za-z]+\*?(?:\s?\{[^{}]*\})?|[_^]\{[^{}]*\}")  # commands with their words
OPEN_QUOTE = re.compile(r"(?:\\[A-Za-z]+\*?\s?|[_^])\{[^{}]*\Z")
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
FUNCTIONS = "sum frac dfrac tfrac binom sqrt sin cos tan log max min mathbb mathrm text left boxed vec hat"
BARE = {*GREEK.split(), *FUNCTIONS.split(), *filter(str.isalpha, NAMES)}  # commands that are read without delimiters
MAY_OPEN = re.compile(r"[$\\]")
BEGUN = re.compile(r"\$|\\(?:[A-Za-z]{0,20}|begin\s?)")
COMMAND = re.compile(r"\\([A-Za-z]+)")
# Commands around words of prose, which are read, and those with keys, which are not.
PROSE_NAMES = "text(?:bf|it|tt|sc)|emph|(?:sub){0,2}section\\*?|chapter\\*?|paragraph|title|caption"
KEY_NAMES = "cite[pt]?|label|ref|eqref|pageref"
PROSE_COMMAND = re.compile(
    rf"\\(?:(?:{PROSE_NAMES})\{{(?P<words>[^{{}}]{{0,400}})\}}|(?:{KEY_NAMES})\{{[^{{}}]{{0,200}}\}})"
)
BEGUN_PROSE_COMMAND = re.compile(rf"\\(?:{PROSE_NAMES}|{KEY_NAMES})\{{[^{{}}]{{0,400}}")
ENVIRONMENT_OPENING = re.compile(r"\\begin\s?\{([A-Za-z*]{1,20})\}")
DISPLAYED = {"$$": "$$", "\\(": "\\)", "\\[": "\\]"}
INLINE_END = re.compile(r"(?<=[^\s\\$])\$(?!\d)")


def spoken(math: str) -> str:
    """Return a formula in English words."""
    plain = DECIMAL_COMMA.sub(".", GROUP_COMMA.sub(",", ENVIRONMENT.sub(" ", math.replace("\\\\", " , "))))
    tokens = TOKEN.findall(GIVEN.sub(r"\1\\mid ", plain))
    words = " ".join(_Formula(tokens).words(0))
    return re.sub(r"\s+([,.;:])", r"\1", re.sub(rf"[,\s]*{PAUSE}[,\s]*", ", ", re.sub(r"\s+", " ", words))).strip(" ,")


def is_prose(math: str) -> bool:
    """Return True if a text contains words outside commands, so that it is not a formula."""
    return PROSE.search(QUOTED.sub(" ", OPEN_QUOTE.sub(" ", math[:MAX_INLINE_CHARS]))) is not None


class _Formula:
    """Parser of a formula's tokens."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens
        self._at = 0

    def words(self, depth: int) -> list[str]:
        """Return the words up to the end of the group."""
        words = list[str]()
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            if token == "}":
                if depth:
                    break
                continue
            words += self._word(token, words, depth)
        return words

    def _word(self, token: str, before: list[str], depth: int) -> list[str]:
        if token == "{":
            return self.words(depth + 1) if depth < MAX_DEPTH else self._skipped()
        if token[0] == "\\":
            return self._command(token[1:], depth)
        if token == "^":
            return self._power(self._argument(depth))
        if token == "_":
            index = self._argument(depth)
            return index if index and index[0][0].isdigit() else ["sub", *index]
        if token == "(":
            return self._opened(before)
        if token in SIGNS:
            return [SIGNS[token]]
        return [token] if token.isalnum() or token in ",.:;" or token[0].isdigit() else []

    @staticmethod
    def _opened(before: list[str]) -> list[str]:
        """Return the words for an opening bracket after `before`."""
        if not before:
            return []
        if before[-1] in FUNCTIONS_OF:
            return ["of"]
        return ["times"] if before[-1].isdigit() or (len(before[-1]) == 1 and before[-1].isalpha()) else []

    def _power(self, exponent: list[str]) -> list[str]:
        if len(exponent) == 1 and exponent[0] in NUMERALS:
            return [NUMERALS[exponent[0]]]
        if exponent in (["degrees"], ["prime"]):
            return exponent
        return ["to the power of", *exponent]

    def _command(self, name: str, depth: int) -> list[str]:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            over = self._argument(depth)
            under = self._argument(depth)
            is_number = [len(over), len(under)] == [1, 1] and (over[0] + under[0]).isdigit()
            return [f"{over[0]}/{under[0]}"] if is_number else [*over, "over", *under]
        if name in TEXTUAL and self._next() == "{":
            return self._text()
        if name in ("binom", "dbinom", "tbinom"):
            return [*self._argument(depth), "choose", *self._argument(depth)]
        if name == "sqrt":
            return self._root(depth)
        if name in BOUNDED:
            return self._bounded(name, depth)
        if name == "log" and self._next() == "_":
            self._at += 1
            return ["log base", *self._argument(depth), "of"]
        if name in SILENT or not (name.isalpha() or name in NAMES):
            return []
        return [NAMES.get(name, name)]

    def _text(self) -> list[str]:
        end = self._at
        while end < len(self._tokens) and self._tokens[end] != "}":
            end += 1
        words = "".join(self._tokens[self._at + 1 : end]).split()
        self._at = end + 1
        return words

    def _root(self, depth: int) -> list[str]:
        name = "square"
        if self._next() == "[":
            end = next(
                (at for at in range(self._at, min(self._at + 8, len(self._tokens))) if self._tokens[at] == "]"), None
            )
            if end is not None:
                degree = "".join(self._tokens[self._at + 1 : end]).strip()
                name = "cube" if degree == "3" else f"{degree}th"
                self._at = end + 1
        return [f"{name} root of", *self._argument(depth)]

    def _bounded(self, name: str, depth: int) -> list[str]:
        """Return a sum, an integral or a limit with its bounds."""
        words = [NAMES.get(name, name)]
        for _ in range(2):
            sign = self._next()
            if sign not in ("_", "^"):
                break
            self._at += 1
            lower = "as" if name == "lim" else "from"
            prefix = lower if sign == "_" else "to"
            words += [prefix, *self._argument(depth)]
        return [*words, "of"] if len(words) > 1 or name in ("sum", "prod", "int") else words

    def _argument(self, depth: int) -> list[str]:
        """Return the next group or token."""
        token = self._next()
        if not token:
            return []
        self._at += 1
        return self._word(token, [], depth + 1) if depth < MAX_DEPTH else []

    def _next(self) -> str:
        """Return the next token that is not a space; empty at the end."""
        while self._at < len(self._tokens) and self._tokens[self._at].isspace():
            self._at += 1
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _skipped(self) -> list[str]:
        """Skip the rest of a group that is nested too deeply."""
        depth = 1
        while depth and self._at < len(self._tokens):
            depth += {"{": 1, "}": -1}.get(self._tokens[self._at], 0)
            self._at += 1
        return []


class LatexFilter:
    """Incremental filter that replaces formulas with words. The result does not depend on the division into pieces."""

    def __init__(self) -> None:
        self._held = ""  # formula that is not closed yet
        self._last = ""  # last character before it

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready."""
        return self._read(self._held + piece, is_last=False)

    def end(self) -> str:
        """End the text; return the rest of it."""
        return self._read(self._held, is_last=True)

    def _read(self, text: str, is_last: bool) -> str:
        ready = list[str]()
        at = 0
        while at < len(text):
            sign = MAY_OPEN.search(text, at)
            start = len(text) if sign is None else sign.start()
            ready.append(text[at:start])
            self._last = text[start - 1] if start > at else self._last
            at = start
            if sign is None:
                break
            formula = formula_at(text, at, self._last, is_last)
            if formula is None:
                break
            end, words = formula
            ready.append(words)
            self._last = text[end - 1]
            at = end
        self._held = text[at:]
        return "".join(ready)


Formula = tuple[int, str]  # its end, and its words


def formula_at(text: str, at: int, before: str, is_last: bool) -> Formula | None:
    """Return the end and the words of a formula or other text at a `$` or backslash; None if more text is needed.

    Args:
        before: Character before it; empty at the beginning.
    """
    window = text[at : at + MAX_MATH_CHARS]
    may_grow = not is_last and len(window) < MAX_MATH_CHARS
    if may_grow and BEGUN.fullmatch(window):
        return None
    if window[:2] in DISPLAYED:
        return _delimited(window, at, window[:2], DISPLAYED[window[:2]], may_grow)
    if window[0] == "$":
        return _inline(window, at, may_grow)
    if environment := ENVIRONMENT_OPENING.match(window):
        return _delimited(window, at, environment.group(), f"\\end{{{environment[1]}}}", may_grow)
    if may_grow and window.startswith("\\begin") and "}" not in window:
        return None
    if prose := PROSE_COMMAND.match(window):
        return at + prose.end(), prose["words"] or ""
    if may_grow and BEGUN_PROSE_COMMAND.fullmatch(window):
        return None
    command = COMMAND.match(window)
    if command is None or command[1] not in BARE or before.isalnum() or before in tuple(":\\/."):
        literal = 2 if window[:2] == "\\\\" else 1
        return at + literal, window[:literal]
    return _bare(window, at, may_grow)


def _delimited(window: str, at: int, opening: str, closing: str, may_grow: bool) -> Formula | None:
    end = window.find(closing, len(opening))
    math = window[len(opening) : end if end >= 0 else None]
    if is_prose(math) or (end < 0 and not may_grow):
        return at + len(opening), opening
    return (at + end + len(closing), spoken(math)) if end >= 0 else None


def _inline(window: str, at: int, may_grow: bool) -> Formula | None:
    line = window[:MAX_INLINE_CHARS].partition("\n")[0]
    may_grow = may_grow and len(line) == len(window)
    end = INLINE_END.search(line, 2)
    if end is not None and may_grow and end.end() == len(line):
        return None  # a digit may follow
    math = line[1 : end.start() if end else None]
    if math[:1].isspace() or not math or is_prose(math) or (end is None and not may_grow):
        return at + 1, "$"
    return None if end is None else (at + end.end(), spoken(math))


def _bare(window: str, at: int, may_grow: bool) -> Formula | None:
    """Read a formula without delimiters, which ends at a space outside braces."""
    size = min(len(window), MAX_INLINE_CHARS)
    depth = 0
    for index, character in enumerate(window[:size]):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth <= 0 and character.isspace():
            size = index
            break
    else:
        if may_grow and size < MAX_INLINE_CHARS:
            return None
    math = window[:size]
    core = math.rstrip(".,;:!?")
    return at + size, spoken(core) + math[len(core) :]
