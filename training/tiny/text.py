"""Generator of domain sentences about times, dates, weather, travel, the home, shopping, numbers, and of small talk.

Text is written as it is spoken, in lower case and with numbers as words. Templates have slots in braces, which are
filled from `SLOTS`. Fillings may contain slots too. This module does not depend on audio or token ids.
"""

import random
import re

ONES = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
).split()


def number_words(value: int) -> str:
    """Return an integer in [0, 999999] in words: 342 is `three hundred and forty two`."""
    if value < 10:
        return ONES[value]
    if value < 20:
        return TEENS[value - 10]
    if value < 100:
        tens, ones = divmod(value, 10)
        return TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        return f"{ONES[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")
    thousands, rest = divmod(value, 1000)
    joint = " and " if 0 < rest < 100 else " "
    return f"{number_words(thousands)} thousand" + (joint + number_words(rest) if rest else "")


def _number(low: int, high: int) -> list[str]:
    return [number_words(value) for value in range(low, high + 1)]


SLOTS: dict[str, list[str]] = {
    "hour": _number(1, 12),
    "minute": [f"oh {word}" for word in _number(1, 9)] + _number(10, 59),
    "past": ["five", "ten", "quarter", "twenty", "twenty five", "half"],
    "to": ["five", "ten", "quarter", "twenty", "twenty five"],
    "part": ["in the morning", "in the afternoon", "in the evening", "at night", "tonight"],
    "time": [
        "{hour} o'clock",
        "{past} past {hour}",
        "{past} past {hour}",
        "{to} to {hour}",
        "{hour} {minute}",
        "{hour} {minute}",
        "{hour} {minute} {part}",
        "{hour} {part}",
        "noon",
        "midnight",
    ],
    "day": "monday tuesday wednesday thursday friday saturday sunday".split(),
    "month": "january february march april may june july august september october november december".split(),
    "ordinal": [*ORDINALS, *(f"twenty {word}" for word in ORDINALS[:9]), "thirty first"],
    "date": ["{month} the {ordinal}", "{month} {ordinal}", "the {ordinal} of {month}"],
    "year": ["nineteen {tens}", "two thousand and {small}", "twenty {tens}"],
    "when": [
        "today",
        "tomorrow",
        "tonight",
        "this morning",
        "this evening",
        "this afternoon",
        "next week",
        "on {day}",
        "this weekend",
        "next month",
        "on {date}",
        "at {time}",
        "soon",
        "later",
    ],
    "city": "london paris berlin tokyo boston chicago denver madrid rome sydney toronto dublin oslo vienna seattle "
    "dallas athens cairo lisbon geneva".split(),
    "room": ["kitchen", "bedroom", "bathroom", "living room", "garage", "office", "garden", "hallway", "basement"],
    "device": "light lamp fan heater television radio music alarm camera oven heating".split(),
    "opening": ["door", "window", "garage", "gate", "front door", "back door", "garden door", "kitchen window"],
    "state": ["open", "closed", "locked", "unlocked", "broken"],
    "sky": "sunny cloudy rainy windy snowy foggy stormy clear cold warm hot dry wet mild".split(),
    "thing": "apples oranges bananas bread milk coffee tea water cheese sugar pepper chicken rice soup cake butter "
    "eggs flour salt potatoes tomatoes".split(),
    "person": "alice david maria peter susan robert anna michael laura james emma daniel".split(),
    "colour": "red green blue yellow white black orange purple brown silver".split(),
    "animal": "dog cat horse bird fish rabbit monkey tiger elephant mouse".split(),
    "digit": ONES,
    "digits": ["{digit} {digit} {digit}", "{digit} {digit} {digit} {digit}", "{digits} {digits}"],
    "small": _number(2, 20),
    "tens": _number(10, 99),
    "count": _number(2, 99),
    "large": _number(100, 999) + _number(1000, 9999)[::7],
    "unit": ["minutes", "seconds", "hours"],
    "greeting": ["hello", "good morning", "good evening", "good afternoon", "welcome", "hi"],
    "courtesy": ["how are you", "how can i help you", "nice to meet you", "have a nice day", "welcome home"],
    "note": [
        "i will be late",
        "see you soon",
        "call me back",
        "thank you very much",
        "good luck",
        "happy birthday",
        "i am on my way",
        "dinner is ready",
        "the meeting starts now",
    ],
    "retry": ["say that again", "try again", "wait a moment", "speak up"],
    "switch": ["on", "off"],
    "vehicle": ["bus", "train", "flight", "ferry"],
    "get": ["buy", "get", "order", "bring"],
}

STATEMENTS = (
    "the time is {time}", "it is {time}", "it is {time}, on {day}", "it is now {time}", "it is {day}, {date}",
    "today is {day}, {date}", "the meeting is {when} at {time}", "the meeting on {day} starts at {time}",
    "set an alarm for {time}", "set a timer for {count} {unit}", "wake me up at {time}",
    "the weather in {city} is {sky} and {sky}", "it will be {sky} in {city} {when}", "it was {sky} in {city}",
    "the temperature is {count} degrees", "the temperature is minus {small} degrees",
    "tomorrow will be {sky}, with a high of {count} degrees", "it is {count} degrees in the {room}",
    "turn {switch} the {device} in the {room}", "turn the {device} {switch}", "the {device} in the {room} is {switch}",
    "please open the {opening}", "please close the {opening}", "the {opening} is {state}",
    "the {opening} in the {room} is {state}", "lock the {opening} at {time}",
    "the next {vehicle} to {city} leaves at {time}", "your flight to {city} leaves from gate {count}",
    "the {vehicle} from {city} is {count} minutes late", "the {vehicle} to {city} leaves in {count} minutes",
    "please call {person} at {digits}", "the number is {digits}", "your code is {digits}", "the answer is {large}",
    "the answer is {count}", "{count} plus {count} equals {count}", "the total price is {large} dollars",
    "that is {count} dollars and {count} cents", "it was built in {year}",
    "add {thing} and {thing} to the shopping list", "{person} and {person} like {thing} with {thing}",
    "the {colour} {animal} and the {colour} {animal}", "{person} has a {colour} {animal}",
    "there are {small} {thing} in the {room}", "send a message to {person}, {note}", "{greeting} {person}, {courtesy}",
    "{greeting}, {courtesy}", "{note}", "sorry, i did not understand, please {retry}", "play some music in the {room}",
    "remind me to {get} {thing} {when}", "{person} will travel to {city} {when}", "{person} is in the {room}",
)  # fmt: skip
QUESTIONS = (
    "what time is it", "what is the weather in {city}", "is the {opening} {state}", "is the {device} in the {room} on",
    "when does the next {vehicle} to {city} leave", "will it be {sky} {when}", "where is {person}",
    "how many {thing} are there", "what is {count} plus {count}", "can you call {person} {when}",
)  # fmt: skip

_SLOT = re.compile(r"{(\w+)}")


def fill(template: str, rng: random.Random) -> str:
    """Fill all slots of the template at random, including nested ones."""
    while "{" in template:
        template = _SLOT.sub(lambda slot: rng.choice(SLOTS[slot[1]]), template)
    return template


def domain_vocabulary() -> list[str]:
    """Return all words that a domain sentence can contain, sorted."""
    pieces = [*STATEMENTS, *QUESTIONS, *(choice for choices in SLOTS.values() for choice in choices), "and"]
    return sorted({word for piece in pieces for word in _SLOT.sub(" ", piece).replace(",", " ").split()})


def clause(rng: random.Random) -> str:
    """Return a statement or, rarely, two statements joined by `and`."""
    first = fill(rng.choice(STATEMENTS), rng)
    if rng.random() < 0.15 and len(first) < 60:
        return f"{first} and {fill(rng.choice(STATEMENTS), rng)}"
    return first


def domain_sentence(rng: random.Random) -> str:
    """Return a domain sentence: usually a statement, otherwise a question, two statements, or separate words."""
    kind = rng.random()
    if kind < 0.12:
        return fill(rng.choice(QUESTIONS), rng) + "?"
    if kind < 0.24:
        return " ".join(rng.choices(_VOCABULARY, k=rng.randint(3, 8)))
    if kind < 0.32:
        return f"{clause(rng)}. {clause(rng)}."
    return clause(rng) + ("." if rng.random() < 0.5 else "")


_VOCABULARY = domain_vocabulary()
