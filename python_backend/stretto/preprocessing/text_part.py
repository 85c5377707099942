"""Requests that carry more text for a reply in progress, instead of a prompt."""

from stretto.errors import InvalidRequest
from stretto.preprocessing.json_field import read_json
from stretto.preprocessing.request import RawRequest, string
from stretto.preprocessing.subwords import check_text
from stretto.records.prompt import MAX_PART_CHARS, SESSION, TextPart

FIELD = "session"


def read_part(raw: RawRequest) -> TextPart:
    """Return the text part of a request; raise InvalidRequest if an input is invalid."""
    for name in ("audio", "pcm_in", "sample_rate", "messages", "task", "options"):
        if getattr(raw, name) is not None:
            raise InvalidRequest(name, "none beside session, which the reply began with", "some")
    record = string(FIELD, raw.session)
    assert record is not None, "whoever calls this has looked"
    read_json(FIELD, record)
    session = SESSION.read(FIELD, record.encode(errors="surrogatepass"))
    text = string("text", raw.text)
    if text is None:
        raise InvalidRequest("text", "the next part of the text, '' if nothing is added", "nothing")
    check_text(text, "text", MAX_PART_CHARS)
    return TextPart(session["id"], session["part"], text, session["is_last"])
