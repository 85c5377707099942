"""Lines and paragraphs without final punctuation are followed by a pause, wrapped lines are not."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stretto_client import SpeechClient
from stretto_client.markup import Markup, has_marks, open_reader
from tests.client.fake_server import Chunk, FakeServer
from tests.client.reading import cut, read, written
from tests.client.test_live_speech import Live

WRAPPED = (
    "The harbour lies behind a long wall of grey stone, and the boats\nthat come in at night are guided by two lamps "
    "on its end, which\nthe keeper lights at dusk."
)
COMPLETE = {
    "Overview\n\nThe garden is open.": "Overview.\n\nThe garden is open.",
    "Red\nBlue\nGreen\nYellow": "Red.\nBlue.\nGreen.\nYellow",
    "flour\nbrown sugar\neggs\r\nsalt": "flour.\nbrown sugar.\neggs.\r\nsalt",
    "Dear Ann,\nthe train is late\n\nBest wishes\nBob\n": "Dear Ann,\nthe train is late.\n\nBest wishes.\nBob\n",
    "Costs 5 €\n\n(by card)\n\n10 %\n\n“in cash”\n\nEnd": "Costs 5 €.\n\n(by card).\n\n10 %.\n\n“in cash”.\n\nEnd",
    "Ready?\nYes!\nWait:\nGo;\nNow": "Ready?\nYes!\nWait:\nGo;\nNow",
    "你好\n世界": "你好。\n世界",
    "Room 12\n7 pm": "Room 12.\n7 pm",
    "Bring the glass bottles and the paper labels from the store room\nWash all of them": (
        "Bring the glass bottles and the paper labels from the store room.\nWash all of them"
    ),
    "• warm socks and boots\n• a map of the river": "• warm socks and boots.\n• a map of the river",
}
ONGOING = (
    WRAPPED,
    "The garden is\nopen today.",
    "They went by train and by boat, as far as the fort of Ghent near\nParis, which I know.",
    "In the spring of that year we moved to the house by the lake and\nI learned to swim.",
    "Hello",
    "Hello\n",
    "Hello \n\n ",
)


@pytest.mark.parametrize("markup", ["auto", "markdown", "none"])
def test_complete_lines_end_with_a_full_stop(markup: Markup) -> None:
    for text, spoken in COMPLETE.items():
        assert has_marks(text, markup) == (text != spoken)
        for size in (1, 2, 3, 5, 7, 11, len(text)):
            assert read(text, markup, [size]).replace("\r", "") == spoken.replace("\r", ""), size


@pytest.mark.parametrize("markup", ["auto", "markdown", "none"])
def test_wrapped_lines_and_the_last_line_are_unchanged(markup: Markup) -> None:
    for text in ONGOING:
        for size in (1, 2, 3, 5, 7, 11, len(text)):
            assert read(text, markup, [size]) == text


BITS = ("red", "Blue", " ", "\n", "\n\n", "\r\n", "\r", ".", "猫", "7", ")", "long word " * 7, "\t", "%", "- ", "1. ")
CUTS = st.lists(st.integers(1, 20), min_size=1, max_size=10)


@given(st.lists(st.sampled_from(BITS), max_size=25).map("".join), CUTS)
@example("a\r\n\r\nB", [3])
def test_line_ends_do_not_depend_on_cuts(text: str, sizes: list[int]) -> None:
    for markup in ("auto", "none"):
        assert read(text, markup, sizes) == read(text, markup) == read(text, markup, [1])
    assert read(text, "none").replace(".", "").replace("。", "") == text.replace(".", "").replace("。", "")


def test_text_without_line_ends_is_returned_immediately() -> None:
    reader = open_reader("none")
    assert [reader.add(piece) for piece in ("Gr", "üße ", "Ann\n", "Be", "n ", "or\nI, ", "so")] == [
        *("Gr", "üße ", "Ann", "", ".\nBen ", "or.\nI, ", "so")
    ]


SPOKEN = [Chunk(0, 640), Chunk(1, 640, is_final=True, is_last=True)]


@pytest.mark.parametrize("markup", ["auto", "none"])
async def test_requests_have_a_pause_at_line_ends(markup: Markup) -> None:
    server, live = FakeServer(lambda _: SPOKEN), Live()
    text = "Overview\n\nThe garden is open\nCome in"
    async with SpeechClient(await server.start()) as client, SpeechClient(await live.server.start()) as other:
        _ = [event async for event in client.speak(text, markup=markup)]
        for size in (1, 4, 100):
            _ = [event async for event in client.speak(written(*cut(text, [size])), markup=markup)]
        _ = [event async for event in other.speak(written(*cut(text, [3])), markup=markup)]
    await server.stop()
    await live.server.stop()
    whole, *streamed = [" ".join(request["text"].decode().split()) for request in server.requests]
    assert whole == "Overview. The garden is open. Come in"
    assert " ".join(streamed) == " ".join([whole] * 3)
    assert " ".join(live.text.split()) == whole
