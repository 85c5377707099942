"""Language names and codes in requests."""

from stretto_client import ModelProfile
from stretto_gateway.api_error import refused

AUTO = "auto"  # leaves the language to the model
# ISO 639-1 and 639-2 codes of the languages that speech models name; others are given by their English names.
CODES = dict(
    pair.split(":")
    for pair in (
        "ar:arabic cs:czech da:danish de:german el:greek en:english es:spanish fi:finnish fr:french he:hebrew hi:hindi "
        "hu:hungarian id:indonesian it:italian ja:japanese ko:korean ms:malay nl:dutch no:norwegian pl:polish "
        "pt:portuguese ro:romanian ru:russian sv:swedish sw:swahili th:thai tr:turkish uk:ukrainian vi:vietnamese "
        "zh:chinese deu:german eng:english fra:french ita:italian jpn:japanese kor:korean por:portuguese rus:russian "
        "spa:spanish zho:chinese"
    ).split()
)


def language_name(profile: ModelProfile, language: object) -> str:
    """Return the model's name of a language, or AUTO.

    Args:
        profile: The served model. If it lists no languages, the server checks the name.
        language: An English name, a code such as `en` or `en-US`, or `Auto`.

    Raises:
        ApiError: The model does not support the language.
    """
    if not isinstance(language, str):
        raise refused("language", "a name or a code of a language", language)
    name = code_name(language)
    if name != AUTO and profile.languages and name not in profile.languages:
        raise refused("language", f"one of {', '.join((AUTO, *profile.languages))}", language)
    return name


def code_name(language: str) -> str:
    """Return the lower-case English name for a code such as `en` or `en-US`, or the name itself."""
    plain = language.strip().lower()
    return CODES.get(plain.replace("_", "-").partition("-")[0], plain) or AUTO
