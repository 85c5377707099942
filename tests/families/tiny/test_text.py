"""Text normalisation: a table of known sentences, and properties of any text."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stretto.families.tiny.family import CHARACTERS
from stretto.families.tiny.text import normalise, words_of

KNOWN = {
    # plain
    "It is twenty past nine and the garden door is open.": "it is twenty past nine and the garden door is open.",
    "  Two\tspaces \n and  a\u00a0line ": "two spaces and a line",
    "Wait!!! What?! Really...": "wait! what? really.",
    "“Don’t” she said — ‘naïve’ café…": "don't she said, naive cafe.",
    "rock'n'roll 'tis o'clock": "rock'n'roll tis o'clock",
    "e\u0301te\u0301": "ete",
    "Привет 😀": "privet",
    # times
    "It is 9:20": "it is nine twenty",
    "at 21:05, gate 12": "at twenty one oh five, gate twelve",
    "9 pm": "nine pee em",
    "9:00 a.m. or 9:00": "nine ay em or nine o'clock",
    "21:00": "twenty one hundred",
    "12:30:15": "twelve thirty and fifteen seconds",
    "a score of 9:75": "a score of nine seventy five",
    # counts, decimals, ordinals
    "1,234.5 of 61.725": "one thousand two hundred and thirty four point five of sixty one point seven two five",
    "1st 2nd 3rd 21st": "first second third twenty first",
    "007": "zero zero seven",
    "1234567890123456": "one two three four five six seven eight nine zero one two three four five six",
    "version 1.2.3": "version one point two point three",
    "٣ apples": "three apples",
    "5-10 days": "five to ten days",
    "2+2=4, 5 - 3, 5 x 3": "two plus two equals four, five minus three, five times three",
    "½ cup, 2½ cups, 3/4": "one half cup, two and one half cups, three quarters",
    # years and dates
    "In 1984 I had 1984 apples": "in nineteen eighty four i had one thousand nine hundred and eighty four apples",
    "the 1990s and the 80s": "the nineteen nineties and the eighties",
    "On November 5, 2026": "on november fifth, twenty twenty six",
    "Nov. 5": "november fifth",
    "3rd May 1905": "third of may, nineteen oh five",
    "2026-11-20": "november the twentieth, twenty twenty six",
    "they may 5 times march 3 miles": "they may five times march three miles",
    # money, percent, units
    "$5.50 for 3kg": "five dollars and fifty cents for three kilograms",
    "$1 $0.01 £1.01": "one dollar one cent one pound and one pence",
    "$3 million and 20€": "three million dollars and twenty euros",
    "5% off": "five percent off",
    "-5°C, 1 km/h, 1 ft, 60 mph": "minus five degrees celsius, one kilometer per hour, one foot, sixty miles per hour",
    # abbreviations, acronyms, addresses
    "Dr. Smith, 12 Main St. in St. Louis": "doctor smith, twelve main street in saint louis",
    "Mr Jones, e.g. Anna, i.e. her, etc.": "mister jones, for example anna, that is her, et cetera.",
    "BBC, NASA and the U.S.A.": "bee bee see, nasa and the you ess ay.",
    "IT IS TEN": "it is ten",
    "No. 5 and #7": "number five and number seven",
    "anna@example.com": "anna at example dot com",
    "https://www.example.com": "example dot com",
    "Ph.D., a.k.a. C#, w/o milk": "pee aitch dee, also known as see sharp, without milk",
    "Fig. 3, p. 12 and pp. 3-5. A fig. Yes": "figure three, page twelve and pages three to five. a fig. yes",
    "Tue. 4 Mar, Sun. 5 May. The Sun. He sat.": "tuesday fourth of march, sunday fifth of may. the sun. he sat.",
    # codes, ratios, fractions
    "Flight BA2490, Room 105, Boeing 747, 221B Baker St.": "flight bee ay twenty four ninety, room one oh five, "
    "boeing seven forty seven, two twenty one bee baker street.",
    "F-16s, COVID-19, MP3, 4K and H2O": "eff sixteens, covid nineteen, em pee three, four kay and aitch two oh",
    "3:1, 16:9, 10x faster, 1920x1080": "three to one, sixteen to nine, ten times faster, "
    "nineteen twenty by ten eighty",
    "3/8, 22/7, 7/10, 24/7, 5k": "three eighths, twenty two over seven, seven out of ten, twenty four seven, "
    "five thousand",
    "6'2\" or 6 ft 2 in": "six feet two or six feet two inches",
    ".5 of it": "zero point five of it",
    "12/25/2025, 13/4/2026, 4.3.2026, 01/02/99": "december twenty fifth, twenty twenty five, april thirteenth, "
    "twenty twenty six, march fourth, twenty twenty six, january second, nineteen ninety nine",
    "13/13/2026": "thirteen over thirteen over two thousand and twenty six",
    "$3.5M, £2bn, €500k": "three point five million dollars, two billion pounds, five hundred thousand euros",
    # numerals
    "Henry VIII, Elizabeth II's, Charles I of England": "henry the eighth, elizabeth the second's, "
    "charles the first of england",
    "World War II, WWI, Chapter IV, John Smith III": "world war two, world war one, chapter four, john smith the third",
    "Charles I know, iPhone X, Size XL, an IV, An IV drip": "charles i know, iphone ex, size ex el, an eye vee, an "
    "eye vee drip",
    # addresses
    "x_y-1@my.co.uk!": "ex underscore why dash one at my dot co dot you kay!",
    "See https://a.org/docs?id=42#top.": "see ay dot org slash docs question mark id equals forty two hash top.",
    "(www.bbc.com/n-1234)": "double you double you double you dot bee bee see dot com slash en dash one two three four",
    "Wait.What and/or he/she": "wait dot what and or he she",
    "call 555-1234": "call five five five one two three four",
    "(555) 123-4567": "five five five one two three four five six seven",
    "+44 20 7946 0958": "plus four four two zero seven nine four six zero nine five eight",
    "R&D": "ar and dee",
    "http://localhost:8080/2024/ at 192.168.0.1.": "localhost colon eight zero eight zero slash twenty twenty four "
    "at one nine two dot one six eight dot zero dot one.",
    "mailto:anna.k@web.de,bob@x.com": "anna dot kay at web dot dee ee, bob at ex dot com",
    "HDMI, NASA and .NET, two PhDs": "aitch dee em eye, nasa and dot net, two pee aitch dees",
    "10^6, 99¢, 50/50, a 12 oz. can": "ten to the power of six, ninety nine cents, fifty fifty, a twelve ounces can",
    # ranges
    "Mon-Fri, 9:00-10:30 and 3pm-5pm": "monday to friday, nine o'clock to ten thirty and three pee em to five pee em",
    "Open Mon.-Fri., 9 a.m.-5 p.m.": "open monday to friday, nine ay em to five pee em.",
    "8-9pm, $5-$10": "eight to nine pee em, five dollars to ten dollars",
    "on Tue, Mar 3rd, Sat 5 Jul": "on tuesday, march third, saturday fifth of july",
    "The Sun rose. Wed in May, he Sat down": "the sun rose. wed in may, he sat down",
    "ISBN 978-3-16, Q3 2024": "eye ess bee en nine seven eight, three, one six, cue three twenty twenty four",
    "12 Baker St, Hwy 101 vs 42nd Ave.": "twelve baker street, highway one oh one versus forty second avenue.",
    # letters: each is spoken by its name
    "H, h. B": "aitch, aitch. bee",
    "the FBI, the CEO's GPL, NHS 24, HTTP": "the eff bee eye, the see ee oh's gee pee el, en aitch ess twenty four, "
    "aitch tee tee pee",
    "CDs, URLs, two PhDs and html": "see dees, you ar els, two pee aitch dees and aitch tee em el",
    "J. R. R. Tolkien, KX51 ABC": "jay ar ar tolkien, kay ex fifty one ay bee see",
    "c a t, A B": "see ay tee, ay bee",
    "vitamin A, plan B, A to Z, a cat": "vitamin ay, plan bee, ay to zee, a cat",
    "T-shirt, X-ray, R&D, AT&T, X's": "tee shirt, ex ray, ar and dee, ay tee and tee, ex's",
    "rock'n'roll, y'all, d'Art": "rock'n'roll, y'all, d'art",
    "bbc.co.uk, w@x.de": "bee bee see dot co dot you kay, double you at ex dot dee ee",
    # capitals: words are words
    "Do not RUN. The CAR is HERE": "do not run. the car is here",
    "IT WAS THE END of the line": "it was the end of the line",
    "THE CAT SAT ON 1 MAT": "the cat sat on one mat",
    "FAQ": "eff ay cue",
    "NBA": "en bee ay",
    "the US army. TELL US NOW": "the you ess army. tell us now",
    "the IT job. IT IS. WHO said so": "the eye tee job. it is. who said so",
    "a USB-C port, AM/PM, a SIM": "a you ess bee see port, ay em pee em, a sim",
    "I AM HERE. M&Ms, Xs and Os": "i am here. em and ems, exes and os",
    "A4, B2B, R2-D2, a 5-year-old": "ay four, bee two bee, ar two dee two, a five year old",
    "I'LL SAY WE'VE TIME": "i'll say we've time",
    "ISN'T TOM'S APP OK? YEP. AMY PAYS PER UNIT.": "isn't tom's app okay? yep. amy pays per unit.",
    '"AM I LATE?"': "am i late?",
    "THE BBC'S CEO IN THE USA": "the bee bee see's see ee oh in the you ess ay",
    "'BBC' and the CEOs' or MPs' pay": "bee bee see and the see ee ohs or em pees pay",
    "mmm hmmm shhh brrr pssst. SHHH MMM": "mmm hmmm shhh brrr pssst. shhh mmm",
    "pls, the bldg, https, two tvs": "pls, the bldg, aitch tee tee pee ess, two tee vees",
    # unit letters
    "5G, 4K, 3D, 3M": "five gee, four kay, three dee, three em",
    "10M users, 1.5M views, a 7B model, 50k": "ten million users, one point five million views, a seven billion model, "
    "fifty thousand",
    "5M died. It cost 5M, in Room 5M. 3M makes tape.": "five million died. it cost five million, in room five em. "
    "three em makes tape.",
    "CALL 911": "call nine one one",
    "Dial 999. Call 911 people.": "dial nine nine nine. call nine hundred and eleven people.",
    "1080p, 720p, 401k, 403(b)": "ten eighty pee, seven twenty pee, four oh one kay, four oh three bee",
    "born c. 1452, HTTP 404": "born circa fourteen fifty two, aitch tee tee pee four oh four",
    "John 3:16, Psalm 23:1-6, Genesis 1:1": "john three sixteen, psalm twenty three one to six, genesis one one",
    "James 10:00 am, Mark 9:05": "james ten ay em, mark nine oh five",
    "MP3s, two F16s": "em pee threes, two eff sixteens",
    "Room 4B, exit 5B is, 2B pencil, 24K gold": "room four bee, exit five bee is, two bee pencil, twenty four kay gold",
    "500M daily users, $100B, over 3M, a 2.5B loan": "five hundred million daily users, one hundred billion dollars, "
    "over three million, a two point five billion loan",
    "Seat 12A is free, 221A is not": "seat twelve ay is free, two twenty one ay is not",
    "The HR, an MPH, MG cars, CM Punk, ml models": "the aitch ar, an em pee aitch, em gee cars, see em punk, ml models",
    "Mm. mm-hmm": "mm. mm hmm",
    "ten km per kWh, per GB, an hr, dollars/kg, in km/h": "ten kilometers per kilowatt hour, per gigabyte, an hour, "
    "dollars per kilogram, in kilometers per hour",
    "20 kms, 5 sq km, 3ft 2in, 180°C/350°F": "twenty kilometers, five square kilometers, three feet two inches, one "
    "hundred and eighty degrees celsius three hundred and fifty degrees fahrenheit",
    "1h 30m, 2h30m, 5m 30s, 30m up": "one hour thirty minutes, two hours thirty minutes, five minutes thirty seconds, "
    "thirty meters up",
    "5 v 5, Spain v Italy, 5 v, 1 sq ft": "five versus five, spain versus italy, five volts, one square foot",
    "10 cm x 20 cm, 10cmx20cm, 4 x 12 x 25 mm, 5 x 3": "ten centimeters by twenty centimeters, ten centimeters by "
    "twenty centimeters, four by twelve by twenty five millimeters, five times three",
    "10^-5, 3×10^8 m/s, 1:32.608": "ten to the power of minus five, three times ten to the power of eight meters per "
    "second, one thirty two point six zero eight",
    "100W, 60W, 5 MW, 5 mW": "one hundred watts, sixty watts, five megawatts, five milliwatts",
    "a 60s timeout in the 60s": "a sixty seconds timeout in the sixties",
    "It took 200 ms. Then Ms. Lee left.": "it took two hundred milliseconds. then miss lee left.",
    "5 min., 6 col., 5 \N{MICRO SIGN}s, 3 \N{GREEK SMALL LETTER MU}m": "five minutes. six col. five microseconds, "
    "three micrometers",
    "cost per km, in kg": "cost per kilometer, in kilograms",
    "3.4m people, 3.4m tall, 5tn": "three point four million people, three point four meters tall, five trillion",
    # signs and ranges
    "-$5, $-5, -1/2, -50¢, -.5": "minus five dollars, minus five dollars, minus one half, minus fifty cents, "
    "minus zero point five",
    "-5, (-3), 5-3=2, won 2-1": "minus five, minus three, five minus three equals two, won two to one",
    "1e-5, 2.5E+8": "one times ten to the minus five, two point five times ten to the eight",
    "5%-10%, $5-10, 10k-20k, 3pm-5": "five percent to ten percent, five to ten dollars, ten thousand to twenty "
    "thousand, three pee em to five",
    "10 km - 20 km, 5-10 kg, 3-1/2 cups": "ten kilometers to twenty kilometers, five to ten kilograms, "
    "three and one half cups",
    "Jan 5-7, 5-7 May, Jan 5 - Feb 7": "january fifth to seventh, fifth to seventh of may, january fifth to february "
    "seventh",
    "Oct-Dec 2024, 2010-2015": "october to december twenty twenty four, twenty ten to twenty fifteen",
    "a 20-ft boat, 1/4 lb ham, 3/4 tsp, 9 trillion km/yr": "a twenty feet boat, one quarter pound ham, three quarters "
    "teaspoon, nine trillion kilometers per year",
    "330M monthly active users": "three hundred and thirty million monthly active users",
    "The WHO said the pH is 7": "the double you aitch oh said the pee aitch is seven",
    "I'M OUT W/ JOE": "i'm out with joe",
    # addresses
    "12 Main St., Rome, near Elm St.": "twelve main street, rome, near elm street.",
    "123 W Main St, E. 42nd St, 5th Ave NW": "one hundred and twenty three west main street, east forty second street, "
    "fifth avenue en double you",
    "PO Box 1234, DC 20500-0003": "pee oh box twelve thirty four, dee see two zero five zero zero zero zero zero three",
    # dates and slashes
    "2024/10/01, 2024.10.01": "october the first, twenty twenty four, october the first, twenty twenty four",
    "2024-10-01T12:30:00Z": "october the first, twenty twenty four, twelve thirty you tee see",
    "10 litres/day, $10/month, 100 MB/s": "ten litres per day, ten dollars per month, one hundred megabytes per second",
    "60 km/h, 5 mg/kg, 24/7, he/she": "sixty kilometers per hour, five milligrams per kilogram, twenty four seven, he "
    "she",
    "5-May-2024, 05-Jan-2023": "fifth of may, twenty twenty four, fifth of january, twenty twenty three",
    "10.30 am": "ten thirty ay em",
    # groups of digits
    "1300 555 019": "one three zero zero, five five five, zero one nine",
    "06 12 34 56 78": "zero six, one two, three four, five six, seven eight",
    "4242 4242 4242 4242": "four two four two, four two four two, four two four two, four two four two",
    "50 - 60 kg, 50 - 60%": "fifty to sixty kilograms, fifty to sixty percent",
    "07700 900123": "zero seven seven zero zero, nine zero zero one two three",
    "555 1234, 10 000 people": "five five five, one two three four, ten thousand people",
    "100 200 300 400, 0 10 20 30": "one hundred, two hundred, three hundred, four hundred, zero, ten, twenty, thirty",
    # invisible characters, and apostrophes of all keyboards
    "pre\u00adrequi\u200dsi\u2060te\ufeffs \u200eso\u200c": "prerequisites so",
    "don`t don\u00b4t don\u2019t don\u02bct don\u2032t don\uff07t": "don't don't don't don't don't don't",
    "word\u200bword": "word word",
    # comparisons and other signs
    "x < y, 5>3, x<5": "ex less than why, five greater than three, ex less than five",
    "x >= 5, \u22645, x != y, x \u2260 y": "ex greater than or equal to five, less than or equal to five, "
    "ex is not equal to why, ex is not equal to why",
    "\u2116 5, ~5, \u22485": "number five, about five, about five",
    # currencies
    "\u20b9500, \u20a9500, 5 \u20bd, ¥1": "five hundred rupees, five hundred won, five rubles, one yen",
    # nothing to say
    "": "",
    "... !?": "",
    "😀": "",
}


@pytest.mark.parametrize("text", KNOWN, ids=repr)
def test_text_normalisation_of_known_sentences(text: str) -> None:
    assert normalise(text, CHARACTERS) == KNOWN[text]


NUMBERY = st.text(st.sampled_from(list("0123456789.,:-/$€%°'+ xaApPmMsthkJuly")), max_size=30)


@given(st.one_of(st.text(max_size=200), NUMBERY))
@example("\ud800 lone surrogate")
@example("9" * 200)
@example("1/2" * 60)
@example("1 " * 100)
def test_normalised_text_contains_only_known_characters(text: str) -> None:
    spoken = normalise(text, CHARACTERS)
    assert set(spoken) <= set(CHARACTERS)
    assert spoken == normalise(text, CHARACTERS)
    assert "  " not in spoken
    assert spoken == spoken.strip()
    assert re.sub(r"[,.?!]", " ", spoken).split() == list(words_of(spoken))


@given(st.text(st.sampled_from("abc ABCé,.?!'\n"), min_size=1, max_size=60))
def test_normalization_keeps_all_letters_of_words(text: str) -> None:
    if re.search(r"(?<![^\W_])[^\W_](?![^\W_])|[A-ZÉ]{2}|\b[bc]+\b", text):
        return  # letters that are spelled
    letters = [character for character in normalise(text, CHARACTERS) if character.isalpha()]
    expected = [character for character in text.lower().replace("é", "e") if character.isalpha()]
    if "." not in text:  # a dot inside a word is spoken
        assert letters == expected
