"""`/v1/audio/pronunciations`: the pronunciation dictionary of a key, which applies to all of its speech requests."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from stretto_client import ModelProfile, SpeakArguments
from stretto_client.markup import READING, Markup, has_marks
from stretto_contract.lexicon_files import read_lexicon, write_pls
from stretto_contract.pronunciation import ALPHABETS, DictionaryEntry, InvalidEntry, entries_record, folded, occurring
from stretto_gateway.answers import ApiError, mismatch, refused
from stretto_gateway.catalogue import speaks
from stretto_gateway.fields import Body, Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.pronunciation_store import PronunciationStore
from stretto_gateway.turns import FILES

router = APIRouter()
PLS = "application/pls+xml"
FIELD = "pronunciations"
FORMS: dict[str, Any] = {
    "application/json": {"schema": {"type": "object", "additionalProperties": True}},
    PLS: {"schema": {"type": "string"}},
}


class StoredDictionary(TypedDict):
    """Confirmation that a dictionary is stored."""

    object: Literal["audio.pronunciations"]
    num_entries: int


class DeletedDictionary(TypedDict):
    """Confirmation that the caller has no dictionary."""

    object: Literal["audio.pronunciations.deleted"]
    deleted: bool


ANSWERS: dict[int | str, dict[str, Any]] = {200: {"description": "The dictionary", "content": FORMS}}
BODY = {"requestBody": {"required": True, "content": FORMS}}


@router.get("/v1/audio/pronunciations", response_class=Response, responses=ANSWERS)
async def get_pronunciations(
    request: Request, form: Annotated[Literal["json", "pls"], Query(alias="format")] = "json"
) -> Response:
    """Return the caller's dictionary in the form in which it can be stored again."""
    gateway: Gateway = request.app.state.gateway
    entries = await FILES.run(expect_store(gateway).find, request.state.owner)
    if form == "pls":
        return Response(write_pls(entries), media_type=PLS)
    return JSONResponse(entries_record(entries))


@router.put("/v1/audio/pronunciations", openapi_extra=BODY)
async def put_pronunciations(request: Request, response: Response) -> StoredDictionary:
    """Store a dictionary, in JSON or PLS, in place of the caller's earlier one.

    The header `stretto-ignored` lists the words whose phonemes the served model, or the first one that speaks, does not
    read.
    """
    gateway: Gateway = await request.app.state.gateway.for_model("", speaks)
    store = expect_store(gateway)
    try:
        entries = await READING.run(read_lexicon, await request.body())
        ignored = Ignored(Body(), gateway.strict)
        readable_entries(entries, await gateway.catalogue.profile(), ignored)
        await FILES.run(store.replace, request.state.owner, entries)
    except InvalidEntry as error:
        raise mismatch(f"{FIELD}.{error.path}" if error.path else FIELD, error.expected, error.got) from None
    response.headers.update(ignored.headers)
    return {"object": "audio.pronunciations", "num_entries": len(entries)}


@router.delete("/v1/audio/pronunciations")
async def delete_pronunciations(request: Request) -> DeletedDictionary:
    """Delete the caller's dictionary."""
    gateway: Gateway = request.app.state.gateway
    deleted = await FILES.run(expect_store(gateway).remove, request.state.owner)
    return {"object": "audio.pronunciations.deleted", "deleted": deleted}


def expect_store(gateway: Gateway) -> PronunciationStore:
    """Return the store; raise ApiError if the gateway has none."""
    if gateway.pronunciations is None:
        message = f"{FIELD}: this gateway stores no dictionaries; start it with --voices FOLDER"
        raise ApiError(400, message, code="unsupported")
    return gateway.pronunciations


def readable_entries(
    entries: tuple[DictionaryEntry, ...], profile: ModelProfile, ignored: Ignored
) -> tuple[DictionaryEntry, ...]:
    """Return the entries that the model can speak; add the words of others to `ignored`."""
    for entry in entries:
        if entry.alphabet and entry.alphabet not in profile.phonemes:
            ignored.add(f"{FIELD}.{entry.word}", no_phonemes(profile), entry.alphabet)
    return tuple(entry for entry in entries if not entry.alphabet or entry.alphabet in profile.phonemes)


def no_phonemes(profile: ModelProfile) -> str:
    """Return the description of the spelling that the model needs in place of phonemes."""
    read = f"reads {' and '.join(profile.phonemes)} only" if profile.phonemes else "reads no phonemes"
    return f"a spelling ({profile.family!r} {read})"


async def add_dictionary(
    gateway: Gateway, profile: ModelProfile, options: SpeakArguments, owner: str, ignored: Ignored
) -> None:
    """Add the entries of the caller's dictionary to a request's `options`, unless the request has the word."""
    entries: Any = options.get("pronunciations", {})
    if not isinstance(entries, Mapping):
        raise refused(FIELD, "an object of words and their spellings", entries)
    merged = dict[str, Any]()
    for word, value in entries.items():
        alphabet = value.get("alphabet", "cmu") if isinstance(value, Mapping) else None
        name = ALPHABETS.get(alphabet.lower()) if isinstance(alphabet, str) else None
        if name is None or name in profile.phonemes:
            merged[word] = value
        else:
            ignored.add(f"{FIELD}.{word}", no_phonemes(profile), alphabet)
    stored: tuple[DictionaryEntry, ...] = ()
    if gateway.pronunciations is not None:
        stored = await FILES.run(gateway.pronunciations.find, owner)
    # Phonemes of other models have no effect here. The response listed them when the dictionary was stored.
    readable = (entry for entry in stored if not entry.alphabet or entry.alphabet in profile.phonemes)
    given_words = set(map(folded, merged))
    merged |= entries_record(entry for entry in readable if folded(entry.word) not in given_words)
    if merged:
        options["pronunciations"] = merged
    else:
        options.pop("pronunciations", None)


async def keep_occurring(options: SpeakArguments, text: str, markup: Markup) -> None:
    """Keep only the entries whose words occur in the complete text, so that a request is small.

    All entries are kept if the text may have markup, without which more words occur, as in `New **York**`.
    """
    entries = options.get("pronunciations")
    if entries and not has_marks(text, markup):
        words = await READING.run(occurring, tuple(entries), text)
        options["pronunciations"] = {word: entries[word] for word in words}
        if not words:
            del options["pronunciations"]
