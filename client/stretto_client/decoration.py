r"""Parts of a text that are seen or acted instead of spoken: emoji, faces such as ¯\_(ツ)_/¯, and stage directions."""

import re
from collections.abc import Collection

from stretto_contract.scripts import has_neighbours, is_face

EMOJI = (
    "\U0001f000-\U0001faff\u2500-\u25ff\u2600-\u2775\u2794-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u231a\u231b"
    "\u23e9-\u23fa\ufe0f\u20e3\U000e0020-\U000e007f"
)
EMOJIS = re.compile(rf" ?[{EMOJI}](?:\u200d?[{EMOJI}])*\u200d?")
DECORATION = "\U0001f642"  # stands for a face or a stage direction until emoji are removed
MAX_FACE_CHARS = 24
WORD = re.compile(r"[A-Za-z]{2}|[0-9]")
PUNCTUATION = ".,:;!?…"

MAX_DIRECTION_CHARS = 64
MAX_DIRECTION_WORDS = 7
SOUNDS = (
    "sigh laugh chuckle pause gasp cough whisper giggle groan yawn sniff sniffle sob gulp breathe inhale exhale snort "
    "scoff mumble mutter snicker whimper cry sneeze hiccup stammer moan growl hesitate swallow smile shrug nod wink "
    "grin frown blush smirk chortle cackle"
)
MOVES = "wave bow beam pant clap cheer hum wince grimace applaud stretch shiver tremble kneel dance"
GESTURES = "clear roll shake take look lean raise tilt turn glance scratch step rub stare lower"
OBJECTS = set(  # one of these follows a gesture
    "throat eyes eye head breath around away up down back in forward closer over eyebrow eyebrows brow hand hands "
    "shoulders arms nose chin at".split()
)
NOUNS = set(
    "laughter|applause|silence|beat|inaudible|crosstalk|music|background noise|noise|static|phone rings|door opens"
    "|door closes|door slams|long beat|crying|laughs and claps|music plays|music playing|thunder|footsteps".split("|")
)
ADVERB = re.compile(
    r"[a-z]{2,12}ly|long|short|brief|deep|heavy|soft|quiet|light|loud|nervous|awkward|audience|slight|small"
)
DOUBLED = set("sob nod hum grin shrug clap step tilt".split()) - {"tilt"}
LINKS = set("and at in on with to into under through again".split())  # may follow "laughing"; "gas" may not
SUBJECT = re.compile(
    r"(?:\A|\s)(?:he|she|it|who|that|which|they|everyone|everybody|nobody|someone)\s*\Z", re.IGNORECASE
)
MARKED = re.compile(
    r"(?:(?P<stars>\*{1,3}|_{1,3})(?P<act>[^*_]{3,60})(?P=stars)|\[(?P<act2>[^\[\]()]{3,60})\]|\((?P<act3>[^\[\]()]{3,60})\))"
    rf"(?P<rest>[{PUNCTUATION}]{{0,3}})"
)


def _third(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("ry") else f"{verb}s"


def _progressive(verb: str) -> str:
    if verb in DOUBLED:
        return f"{verb}{verb[-1]}ing"
    return f"{verb.removesuffix('e')}ing"


THIRD = {_third(verb): verb for verb in f"{SOUNDS} {MOVES}".split()}
PROGRESSIVE = {_progressive(verb): verb for verb in f"{SOUNDS} {MOVES}".split()}
GESTURED = {form(verb) for verb in GESTURES.split() for form in (_third, _progressive)}
QUIET = set(MOVES.split())  # "(waves)" may be a noun
FIRST_WORDS = {*SOUNDS.split(), *THIRD, *PROGRESSIVE, *GESTURED, *(noun.split()[0] for noun in NOUNS)}


def without_emoji(text: str) -> str:
    """Return `text` without emoji and without the space before each emoji."""
    return EMOJIS.sub("", text)


def begins_direction(atom: str) -> bool:
    """Return True if a word with an opening bracket may begin a stage direction, such as "(laughs"."""
    word = atom[1:].rstrip(f"){PUNCTUATION}").lower()
    return atom[:1] == "(" and (word in FIRST_WORDS or ADVERB.fullmatch(word) is not None)


def direction(text: str, before: str, tags: Collection[str] | None) -> str | None:
    """Return the punctuation after a stage direction; None if `text` is no such direction.

    Args:
        text: Text in asterisks, underscores or brackets, and punctuation.
        tags: Tags that the model renders; None if unknown. Then text in square brackets may be one.
    """
    marked = MARKED.fullmatch(text.strip())
    if marked is None:
        return None
    act = marked["act"] or marked["act2"] or marked["act3"]
    name = text.strip()[: marked.start("rest")].strip()
    if (tags is None and name[0] == "[") or (tags is not None and name in tags):
        return None
    words = act.lower().rstrip(PUNCTUATION).split()
    is_between = before.strip()[-1:].isalnum()
    if marked["stars"]:
        is_act = _is_act(words, is_stressed=is_between) and SUBJECT.search(before) is None
    else:
        is_act = " ".join(words) in NOUNS or (_is_act(words, is_stressed=False) and not QUIET & {*map(_verb, words)})
    return marked["rest"] if is_act else None


def _verb(word: str) -> str:
    return THIRD.get(word) or PROGRESSIVE.get(word) or word


def _is_act(words: list[str], is_stressed: bool) -> bool:
    """Return True if words describe an act; words that may be mere emphasis need a verb in the third person."""
    num_adverbs = next((index for index, word in enumerate(words) if not ADVERB.fullmatch(word)), len(words))
    acts = words[num_adverbs:]
    if not acts or num_adverbs > 2 or len(words) > MAX_DIRECTION_WORDS:
        return False
    first, *others = acts
    if first in GESTURED:
        return bool(OBJECTS & {*others}) and not (is_stressed and first.endswith("ing"))
    if first in THIRD:
        return True
    is_followed = bool(others) and others[0] not in LINKS and ADVERB.fullmatch(others[0]) is None
    if is_stressed or is_followed:
        return False
    return first in PROGRESSIVE or (first in SOUNDS.split() and not others) or acts == ["beat"]


class FaceFilter:
    """Incremental filter that replaces faces with DECORATION, however the text is divided into pieces."""

    def __init__(self) -> None:
        self._token = ""  # characters since the last space, while they may be a face
        self._is_word = False  # True in the rest of a token that is no face

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready."""
        ready = list[str]()
        for token in re.split(r"(\s+)", piece):
            if token.isspace():
                ready += [self.end(), token]
            elif self._is_word:
                ready.append(token)
            elif token:
                ready.append(self._begun(token))
        return "".join(ready)

    def end(self) -> str:
        """End the token; return it, or DECORATION and punctuation for a face."""
        token = self._token
        self._token = ""
        self._is_word = False
        if not token or not is_face(token):
            return token
        return DECORATION + token[len(token.rstrip(PUNCTUATION)) :]

    def _begun(self, word: str) -> str:
        self._token += word
        start = self._token[: MAX_FACE_CHARS + 1]
        if len(start) <= MAX_FACE_CHARS and not WORD.search(start) and not has_neighbours(start):
            return ""
        token = self._token
        self._token = ""
        self._is_word = True
        return token
