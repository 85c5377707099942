"""Names of currencies and units of measure."""

# Unit, plural, hundredth, plural; empty if the currency has none in use.
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "pence", "pence"), "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"), "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"), "₺": ("lira", "lira", "kurush", "kurush"),
    "₪": ("shekel", "shekels", "agora", "agorot"), "₫": ("dong", "dong", "", ""),
    "₦": ("naira", "naira", "kobo", "kobo"), "₴": ("hryvnia", "hryvnias", "kopeck", "kopecks"),
    "₱": ("peso", "pesos", "centavo", "centavos"), "฿": ("baht", "baht", "satang", "satang"),
    "₿": ("bitcoin", "bitcoins", "", ""), "₵": ("cedi", "cedis", "pesewa", "pesewas"),
    "₡": ("colon", "colones", "", ""), "₸": ("tenge", "tenge", "", ""), "₼": ("manat", "manat", "", ""),
    "₾": ("lari", "lari", "tetri", "tetri"),
}  # fmt: skip
SIGNS = "".join(CURRENCIES)
_DOLLARS = {  # by the code of ISO 4217, and the letters before the sign
    "USD US": "you ess", "CAD C CA": "Canadian", "AUD A AU": "Australian", "NZD NZ": "New Zealand",
    "HKD HK": "Hong Kong",    "SGD S SG": "Singapore", "TWD NT": "Taiwan",
}  # fmt: skip
CODES = {  # codes and abbreviations before or after an amount
    "EUR": CURRENCIES["€"], "GBP": CURRENCIES["£"], "JPY": CURRENCIES["¥"], "INR": CURRENCIES["₹"],
    "Rs.": CURRENCIES["₹"], "Rs": CURRENCIES["₹"], "KRW": CURRENCIES["₩"], "RUB": CURRENCIES["₽"],
    "TRY": CURRENCIES["₺"], "ILS": CURRENCIES["₪"], "VND": CURRENCIES["₫"], "NGN": CURRENCIES["₦"],
    "UAH": CURRENCIES["₴"], "PHP": CURRENCIES["₱"], "THB": CURRENCIES["฿"], "BTC": CURRENCIES["₿"],
    "ETH": ("ether", "ether", "", ""), "CNY": ("yuan", "yuan", "", ""), "RMB": ("yuan", "yuan", "", ""),
    "CHF": ("Swiss franc", "Swiss francs", "centime", "centimes"), "SEK": ("krona", "kronor", "", ""),
    "NOK": ("krone", "kroner", "", ""), "DKK": ("krone", "kroner", "", ""), "kr": ("krone", "kroner", "", ""),
    "PLN": ("zloty", "zlotys", "", ""), "zl": ("zloty", "zlotys", "", ""), "CZK": ("koruna", "koruna", "", ""),
    "Kc": ("koruna", "koruna", "", ""), "HUF": ("forint", "forint", "", ""), "RON": ("leu", "lei", "", ""),
    "BRL": ("real", "reals", "centavo", "centavos"), "R$": ("real", "reals", "centavo", "centavos"),
    "MXN": ("Mexican peso", "Mexican pesos", "centavo", "centavos"), "ZAR": ("rand", "rand", "cent", "cents"),
    "IDR": ("rupiah", "rupiah", "", ""), "MYR": ("ringgit", "ringgit", "sen", "sen"),
    "KES": ("shilling", "shillings", "", ""), "AED": ("dirham", "dirhams", "", ""),
    "SAR": ("riyal", "riyals", "", ""), "EGP": ("Egyptian pound", "Egyptian pounds", "", ""),
    "PKR": ("Pakistani rupee", "Pakistani rupees", "", ""),
}  # fmt: skip
for _keys, _country in _DOLLARS.items():
    _code, *_letters = _keys.split()
    for _key in (_code, *(f"{_letter}$" for _letter in _letters)):
        CODES[_key] = (f"{_country} dollar", f"{_country} dollars", "cent", "cents")

UNITS = {  # in any case, except for those in CASED_UNITS
    "km": "kilometers", "cm": "centimeters", "mm": "millimeters", "nm": "nanometers", "microm": "micrometers",
    "mi": "miles", "ft": "feet", "yd": "yards", "in.": "inches", "ha": "hectares", "sq ft": "square feet",
    "kg": "kilograms", "mg": "milligrams", "microg": "micrograms", "mcg": "micrograms", "lb": "pounds", "lbs": "pounds",
    "oz": "ounces",
    "ml": "milliliters", "cl": "centiliters", "dl": "deciliters", "gal": "gallons", "tsp": "teaspoons",
    "tbsp": "tablespoons", "hr": "hours", "hrs": "hours", "min": "minutes", "mins": "minutes", "sec": "seconds",
    "secs": "seconds", "ms": "milliseconds", "micros": "microseconds", "ns": "nanoseconds", "yrs": "years",
    "wks": "weeks", "mph": "miles per hour", "kph": "kilometers per hour", "kmh": "kilometers per hour", "hz": "hertz",
    "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "kb": "kilobytes", "mb": "megabytes",
    "gb": "gigabytes", "tb": "terabytes", "kw": "kilowatts", "kwh": "kilowatt hours", "mwh": "megawatt hours",
    "gwh": "gigawatt hours", "kv": "kilovolts", "rpm": "revolutions per minute", "bpm": "beats per minute",
    "ppm": "parts per million", "ppb": "parts per billion", "mpg": "miles per gallon", "fps": "frames per second",
    "dpi": "dots per inch", "kbps": "kilobits per second", "nmi": "nautical miles", "kn": "knots", "kts": "knots",
    "mbps": "megabits per second", "gbps": "gigabits per second", "kbit": "kilobits", "mbit": "megabits",
    "gbit": "gigabits", "hp": "horsepower", "psi": "pounds per square inch", "kpa": "kilopascals",
    "hpa": "hectopascals", "mah": "milliamp hours", "db": "decibels", "dba": "decibels", "px": "pixels",
    "cal": "calories", "kcal": "kilocalories", "kms": "kilometers",
    "kgs": "kilograms", "mbar": "millibars", "bar": "bars",
    "mmhg": "millimeters of mercury", "btu": "british thermal units", "mmol": "millimoles", "mol": "moles",
    "mp": "megapixels", "fl oz": "fluid ounces", "fl. oz": "fluid ounces",
    "sq km": "square kilometers", "sq m": "square meters", "sq mi": "square miles", "sq in": "square inches",
    "°c": "degrees celsius", "°f": "degrees fahrenheit", "°k": "degrees kelvin", "°": "degrees",
}  # fmt: skip
CASED_UNITS = {
    "m": "meters", "g": "grams", "l": "liters", "L": "liters", "h": "hours", "s": "seconds", "W": "watts",
    "w": "watts", "V": "volts", "v": "volts", "MW": "megawatts", "GW": "gigawatts", "mW": "milliwatts",
    "Mb": "megabits", "Gb": "gigabits",
}  # fmt: skip
_PREFIXES = {
    "E": "exa", "P": "peta", "T": "tera", "G": "giga", "M": "mega", "k": "kilo", "h": "hecto", "d": "deci",
    "m": "milli", "micro": "micro", "n": "nano", "p": "pico",
}  # fmt: skip
_PREFIXED = {  # symbol, plural and prefixes that are in use
    "W": ("watts", "T micro"), "Wh": ("watt hours", "k M G T m"), "J": ("joules", "G M k m"),
    "N": ("newtons", "M k m"), "Pa": ("pascals", "G M k h m"), "A": ("amps", "k m micro n"), "Ah": ("amp hours", "k m"),
    "V": ("volts", "M k m micro n"), "F": ("farads", "m micro n p"), " omega": ("ohms", "M k m"),
    "Hz": ("hertz", "T G M k m"), "B": ("bytes", "E P T G M k"), "bit": ("bits", "T G M k"),
    "bps": ("bits per second", "T G M k"), "eV": ("electronvolts", "T G M k m"), "L": ("liters", "m d micro"),
    "g": ("grams", "n"), "m": ("meters", "p"), "s": ("seconds", "p"), "mol": ("moles", "k m micro n"),
    "T": ("teslas", "m micro"),
    "Sv": ("sieverts", "m micro"), "Bq": ("becquerels", "T G M k"), "cal": ("calories", "k"),
}  # fmt: skip
CASED_UNITS |= {
    prefix + symbol: _PREFIXES[prefix] + plural
    for symbol, (plural, prefixes) in _PREFIXED.items()
    for prefix in prefixes.split()
    if (prefix, symbol) not in (("p", "m"), ("M", "m"))  # `pm` is a time
}
CASED_UNITS |= {
    f"{letter}iB": f"{prefix}bibytes"
    for letter, prefix in zip("KMGTPE", ("ki", "me", "gi", "te", "pe", "ex"), strict=True)
}
CASED_UNITS |= {
    "KB": "kilobytes",
    "Nm": "newton meters",
    "qt": "quarts",
    "pt": "pints",
    "atm": "atmospheres",
    " omega": "ohms",
    "Pa": "pascals",
    "eV": "electronvolts",
    "Ah": "amp hours",
    "Wh": "watt hours",
    "mPa": "millipascals",
}
PER = {  # nouns after a slash: "10 litres/day"
    "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day", "wk": "week",
    "mo": "month", "yr": "year", "km": "kilometer", "m": "meter", "mi": "mile", "kg": "kilogram", "g": "gram",
    "lb": "pound", "l": "liter", "L": "liter", "ml": "milliliter", "mL": "milliliter", "dL": "deciliter",
    "gal": "gallon", "sq ft": "square foot", "kWh": "kilowatt hour", "GB": "gigabyte", "MB": "megabyte",
    "cm": "centimeter", "mm": "millimeter", "ft": "foot", "in": "inch", "oz": "ounce", "mol": "mole", "K": "kelvin",
}  # fmt: skip
PER_NOUNS = (
    "second minute hour day night week month quarter year person head kilogram gram pound meter kilometer mile "
    "liter litre gallon unit item piece page line user student share seat room game dose dozen bottle box bag cup "
    "serving frame child kid team car plate ticket trip"
)
SINGULAR = {
    "feet": "foot",
    "inches": "inch",
    "celsius": "celsius",
    "horsepower": "horsepower",
    "hertz": "hertz",
    "kilohertz": "kilohertz",
    "megahertz": "megahertz",
    "gigahertz": "gigahertz",
    "terahertz": "terahertz",
}
