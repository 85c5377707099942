"""Names and codes of languages in requests."""

AUTO = "auto"  # the model chooses the language
# ISO 639-1 and 639-2 codes of languages that speech models list; other languages can only be given by English name.
CODES = dict(
    pair.split(":")
    for pair in (
        "ar:arabic cs:czech da:danish de:german el:greek en:english es:spanish fa:persian fi:finnish "
        "fil:filipino fr:french he:hebrew hi:hindi hu:hungarian id:indonesian it:italian ja:japanese "
        "ko:korean mk:macedonian ms:malay nl:dutch no:norwegian pl:polish pt:portuguese ro:romanian "
        "ru:russian sv:swedish sw:swahili th:thai tr:turkish uk:ukrainian vi:vietnamese yue:cantonese "
        "zh:chinese deu:german eng:english fra:french ita:italian jpn:japanese kor:korean por:portuguese "
        "rus:russian spa:spanish zho:chinese"
    ).split()
)


def code_name(language: str) -> str:
    """Return the lower-case English name of a language, given its code, such as `en` or `en-US`, or its name."""
    plain = language.strip().lower()
    return CODES.get(plain.replace("_", "-").partition("-")[0], plain) or AUTO
