"""The page in Chromium: typing, playback and messages."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from stretto_gateway.config import Limits
from stretto_gateway.voice_preview import SENTENCE
from tests.browser import EXECUTABLE, Browser, Tab, chromium, driving
from tests.client.fake_server import PROFILE, Abort, Chunk, ErrorText, Request, Step, Until
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE, spoken
from tests.gateway.realtime.test_duplex import DUPLEX, PERSONA, Partner
from tests.gateway.test_chat import task
from tests.gateway.test_checks import good, speech
from tests.gateway.test_voices import cloning
from tests.patience import PATIENCE_S, until_async

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.together("chromium"),
    pytest.mark.skipif(not EXECUTABLE, reason="no Chromium on the PATH; on Debian: apt-get install chromium"),
]
KEY = "sk-0123456789abcdef"
READY = "document.querySelector('[role=tabpanel]:not([hidden])')"
CONTROL = 2
NAMES = [
    "paper",
    "card",
    "field",
    "soft",
    "ink",
    "quiet",
    "accent",
    "accent-strong",
    "on-accent",
    "wrong",
]  # contrast of colours
# Passes all samples that reach the device to `heard`, except silence.
RECORDER = """
const Context = AudioContext, connect = AudioNode.prototype.connect;
window.heard = [];
window.pass = async (seconds) => {  // of the device's own time, in which it hands out samples; none pass while it rests
  const end = context.currentTime + seconds;
  while (context.state === "running" && context.currentTime < end) await new Promise((go) => setTimeout(go, 10));
};
const context = new Context({ sampleRate: 24000 });
window.AudioContext = function (options) { return options.latencyHint ? context : new Context(options); };
window.recorderReady = (async () => {
  await context.audioWorklet.addModule("/recorder.js");
  const recorder = new AudioWorkletNode(context, "recorder");
  recorder.port.onmessage = ({ data }) => heard.push(...data);
  connect.call(recorder, context.destination);
  AudioNode.prototype.connect = function (target, ...rest) {
    return connect.call(this, target === context.destination ? recorder : target, ...rest);
  };
})();
"""
# Fake microphone: silence, and samples in base64 that `say` is given. `isCaptured`: the page has received some.
MICROPHONE = """
let microphone = null;
let isCaptured = false;
window.AudioWorkletNode = class extends AudioWorkletNode {
  constructor(context, name, options) {
    super(context, name, options);
    const look = ({ data }) => (isCaptured ||= data.some((sample) => sample !== 0));
    if (name === "capture") this.port.addEventListener("message", look);
  }
};
navigator.mediaDevices.getUserMedia = async () => {
  microphone?.context.close();
  isCaptured = false;
  microphone = new AudioContext({ sampleRate: 24000 }).createMediaStreamDestination();
  return microphone.stream;
};
window.say = (base64) => {
  const samples = new Int16Array(Uint8Array.from(atob(base64), (each) => each.charCodeAt(0)).buffer);
  const buffer = new AudioBuffer({ length: samples.length, sampleRate: 24000 });
  buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
  const source = new AudioBufferSourceNode(microphone.context, { buffer });
  source.connect(microphone);
  source.start();
};
"""
WORKLET = """
registerProcessor("recorder", class extends AudioWorkletProcessor {
  process([[samples]]) {
    const loud = samples?.filter((sample) => sample !== 0).map((sample) => sample * 32768);
    if (loud?.length) this.port.postMessage(loud);
    return true;
  }
});
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture
async def browser(address: str) -> AsyncIterator[Browser]:
    async with driving(address) as browser:
        yield browser


def wave(seed: int, num_samples: int) -> np.ndarray:
    """Return unique samples [n] int16 without silence."""
    return np.random.default_rng(seed).integers(1, 32_767, num_samples).astype(np.int16)


WAVES = [wave(0, 4800), wave(1, 7777), wave(2, 2400)]
ALL = [sample for each in WAVES for sample in each.tolist()]
CHUNKS = [
    Chunk(0, 4800, is_16_bit=True, pcm=WAVES[0], words=("a",)),
    Chunk(1, 7777, is_16_bit=True, pcm=WAVES[1], words=("cat",)),
    Chunk(2, 2400, is_16_bit=True, pcm=WAVES[2], is_final=True, is_last=True),
]
LONG = Chunk(0, 240_000, is_16_bit=True, pcm=wave(3, 240_000))
TALKS = PROFILE | {"tasks": [*PROFILE["tasks"], task("dialogue", also=[]), task("hearing", needs=["audio"], also=[])]}
CLONES = cloning("text", "audio")
DOES_ALL = TALKS | {"tasks": [*CLONES["tasks"], *TALKS["tasks"][2:]]}
TABS = ("speak", "voices", "transcribe", "converse")


async def listened(browser: Browser, url: str, before: str = "") -> Tab:
    """Open the page in a tab and record its samples on the way to the device; `before` runs before its scripts."""
    tab = await browser.tab()
    await tab.serve("*/recorder.js", WORKLET, "text/javascript")
    await tab.send("Page.addScriptToEvaluateOnNewDocument", source=before + RECORDER)
    await tab.open(url, READY)
    await tab.value("recorderReady")
    return tab


async def test_page_plays_exact_samples_from_the_first_chunk(start: Start, browser: Browser) -> None:
    go = asyncio.Event()
    running = await start([CHUNKS[0], Until(go), *CHUNKS[1:]])
    tab = await listened(browser, running.url)
    await tab.write("#text", "A cat.")
    await tab.value("document.querySelector('#voice').value = 'rms'")
    await tab.write("#seed", "11")
    await tab.click("#speak-button")
    await tab.wait(f"heard.length >= {len(WAVES[0])}")
    await tab.wait("document.querySelector('#first-sound').innerText !== '–'")
    go.set()
    await tab.reads("#speak-status", "Finished")
    assert await tab.value("heard") == ALL
    (request,) = running.behind.requests
    options = json.loads(request["options"])
    assert (request["text"], options["voice"], options["seed"]) == (b"A cat.", "rms", 11)
    await tab.click("#figures summary")
    assert await tab.text("#used-seed") == "11"
    assert (await tab.text("#words")).split() == ["a", "cat"]
    assert await tab.text("#length") == f"{len(ALL) / 24_000:.1f} s"


async def test_page_tells_what_the_checks_of_speech_have_found(start: Start, browser: Browser) -> None:
    replies = iter([speech(), good(), speech(), good()])
    running = await start(lambda _: next(replies))
    tab = await listened(browser, running.url)
    shown = "document.querySelector('#findings').checkVisibility()"
    assert not await tab.value(shown)
    await tab.write("#text", "A cat.")
    await tab.click("#speak-button")
    await tab.reads("#findings", "Faults found: silence at 0.1 s.")
    assert await tab.value(shown)
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    assert not await tab.value(shown), "speech without a fault has the line of the speech before"
    await tab.click("#compare summary")
    await tab.click("#compare-button")
    await tab.reads("#compare-status", "Both are ready")
    lengths = {await tab.text(f"#{side}-length") for side in ("left", "right")}
    assert lengths == {"3.1 s Faults found: silence at 0.1 s.", "1.0 s"}


async def test_page_tells_attempts_given_up_and_unchecked_words(start: Start, browser: Browser) -> None:
    faults = [{"fault": "abrupt_end", "start_s": 1.25}, {"fault": "words", "start_s": 2.0}]
    event = {"type": "speech.audio.done", "faults": faults, "redrawn": 2, "unchecked": ["too_long", "digits", "digits"]}
    running = await start(CHUNKS)
    tab = await browser.tab()
    await tab.serve("*/v1/audio/speech", f"data: {json.dumps(event)}\n\n", "text/event-stream")
    await tab.open(running.url, READY)
    await tab.click("#speak-button")
    faults_told = "Faults found: abrupt end at 1.3 s, words at 2.0 s."
    await tab.reads("#findings", f"{faults_told} Attempts given up: 2. Words not checked: too long, digits.")


# Holds the page up for a while before each sound starts, as a busy machine does.
HELD_UP = """
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  const end = this.context.currentTime + 0.1;
  while (this.context.currentTime < end && performance.now() < 60_000);
  start.call(this, when);
};
"""


async def test_page_plays_each_sample_once_after_stalls(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS)
    tab = await listened(browser, running.url, HELD_UP)
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    assert await tab.value("pass(0.1).then(() => heard)") == ALL


async def test_speech_can_be_replayed_and_downloaded(start: Start, browser: Browser, tmp_path: Path) -> None:
    running = await start(CHUNKS)
    tab = await listened(browser, running.url)
    await tab.save_downloads_to(tmp_path)
    await tab.click("#speak-button")
    await tab.wait("!document.querySelector('#again-button').disabled")
    await tab.click("#again-button")
    await tab.wait(f"heard.length === {2 * len(ALL)}")
    assert await tab.value("heard") == ALL + ALL
    await tab.click("#download")
    file = tmp_path / "speech.wav"
    await until_async(lambda: file.exists() and file.stat().st_size >= 44 + 2 * len(ALL))
    content = file.read_bytes()
    assert content[:4] == b"RIFF"
    assert content[44:] == np.array(ALL, np.int16).tobytes()
    assert len(running.behind.requests) == 1


@pytest.mark.parametrize("by", ["button", "Escape"])
async def test_page_stop_silences_playback_and_cancels_generation(start: Start, browser: Browser, by: str) -> None:
    running = await start([LONG, Until(asyncio.Event())])
    tab = await listened(browser, running.url)
    await tab.write("#text", "A cat.")
    await tab.press("Enter", CONTROL)
    await tab.wait("heard.length > 0")
    await (tab.click("#stop-button") if by == "button" else tab.press("Escape"))
    async with asyncio.timeout(PATIENCE_S):
        await running.behind.cancelled.wait()
    await tab.wait("document.querySelector('#stop-button').hidden")
    assert await tab.text("#speak-status") == "Stopped."
    assert await tab.value("pass(0.1).then(() => heard.length)") == await tab.value(
        "pass(0.2).then(() => heard.length)"
    )
    await tab.click("#again-button")
    await tab.wait("!document.querySelector('#stop-button').hidden")
    assert running.behind.num_cancelled == 1


async def test_page_replaces_current_speech_with_new_text(start: Start, browser: Browser) -> None:
    def script(request: Request) -> list[Step]:
        return CHUNKS if request["text"] == b"Two." else [LONG, Until(asyncio.Event())]

    running = await start(script)
    tab = await listened(browser, running.url)
    await tab.write("#text", "One.")
    await tab.click("#speak-button")
    await tab.wait("heard.length > 0")
    await tab.write("#text", "Two.")
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    assert await tab.value(f"heard.slice(-{len(ALL)})") == ALL
    async with asyncio.timeout(PATIENCE_S):
        await running.behind.cancelled.wait()


async def test_page_shows_an_example_text_and_details_of_voices(start: Start, browser: Browser) -> None:
    details = {"slt": {"gender": "female", "language": "en-US"}, "rms": {"gender": "male"}}
    running = await start(CHUNKS, PROFILE | {"voice_details": details})
    tab = await browser.tab()
    await tab.open(running.url, READY)
    assert "audio is still being generated" in await tab.text("#about")
    options = "[...document.querySelector('#voice').options].map(({ text, value }) => [text, value])"
    assert await tab.value(options) == [["slt (female, en-US)", "slt"], ["rms (male)", "rms"]]
    examples = await tab.value("document.querySelectorAll('#examples button').length")
    for number in range(1, examples + 1):
        example = f"#examples button:nth-of-type({number})"
        await tab.click(example)
        written = await tab.value(f"document.querySelector('{example}').dataset.text")
        assert await tab.value("document.querySelector('#text').value") == written
        await tab.click("#speak-button")
        await tab.reads("#speak-status", "Finished")
    assert examples in (2, 3)
    assert running.behind.requests[0]["text"].decode().startswith("The train to Dublin")
    assert await tab.text("#does") == "This model only speaks and transcribes."
    assert not await tab.value("document.querySelector('#used-seed').checkVisibility()")
    await tab.click("#figures summary")
    assert await tab.value(
        "['#used-seed', '#ahead', '#speed'].every((id) => document.querySelector(id).checkVisibility())"
    )


async def test_page_plays_a_preview_of_the_chosen_voice(start: Start, browser: Browser) -> None:
    """The keyboard chooses the voice and plays it; speech takes the place of a preview."""

    def script(request: Request) -> list[Step]:
        return [LONG, Until(asyncio.Event())] if request["text"] == b"Two." else CHUNKS

    running = await start(script, PROFILE | {"voice_details": {"rms": {"description": "calm"}}})
    tab = await listened(browser, running.url)
    await tab.write("#text", "Two.")
    await tab.click("#speak-button")
    await tab.wait("heard.length > 0")
    await tab.value("document.querySelector('#voice').focus()")
    await tab.press("ArrowDown")
    assert await tab.value("document.querySelector('#voice').value") == "rms"
    assert await tab.text("#voice-hint") == "calm"
    await tab.press("Tab")
    assert await tab.value("document.activeElement.ariaLabel") == "Listen to the voice"
    await tab.press("Enter")
    async with asyncio.timeout(PATIENCE_S):
        await running.behind.cancelled.wait()
    await tab.wait(f"heard.length >= {len(ALL)} && document.querySelector('#listen-button').textContent === 'Listen'")
    assert await tab.value(f"heard.slice(-{len(ALL)})") == ALL
    request = running.behind.requests[-1]
    assert (request["text"].decode(), json.loads(request["options"])["voice"]) == (SENTENCE, "rms")
    assert await tab.value("document.activeElement.id") == "listen-button"


async def test_preview_that_fails_is_reported_at_the_voice(start: Start, browser: Browser) -> None:
    running = await start([ErrorText("full: 9 utterances are already in flight")], limits=Limits(full_s=0.0, drain_s=1))
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.click("#listen-button")
    await tab.reads("#voice-error", "The model is busy with other requests.")
    assert await tab.text("#listen-button") == "Listen"


async def test_status_is_preparing_until_the_first_audio(start: Start, browser: Browser) -> None:
    go = asyncio.Event()
    running = await start([Until(go), LONG, Until(asyncio.Event())])
    tab = await listened(browser, running.url)
    assert not await tab.value("document.querySelector('#stop-button').checkVisibility()")
    await tab.click("#speak-button")
    assert await tab.text("#speak-status") == "Preparing…"
    assert await tab.value("document.querySelector('#stop-button').checkVisibility()")
    go.set()
    await tab.reads("#speak-status", "Speaking…")
    await tab.wait("heard.length > 0")


SILENT_DEVICE = """
AudioContext = class extends AudioContext {
  get currentTime() { return 0; }
  get state() { return "suspended"; }
  resume() { return new Promise(() => {}); }
};
"""


async def test_page_reports_a_missing_audio_device(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS)
    tab = await browser.tab()
    await tab.send("Page.addScriptToEvaluateOnNewDocument", source=SILENT_DEVICE)
    await tab.open(running.url, READY)
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "This browser has no sound device. You can download the file.")
    await tab.wait("document.querySelector('#download').checkVisibility()")
    await tab.wait("!document.querySelector('#stop-button').checkVisibility()")


async def test_page_does_not_send_an_empty_recording(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS)
    tab = await listened(browser, running.url, MICROPHONE)
    await tab.click("#transcribe-tab")
    await tab.click("#record-button")
    await tab.reads("#record-button", "Finish")
    await tab.click("#record-button")
    await tab.reads("#file-error", "Nothing was recorded. Is the microphone on?")
    assert not running.behind.requests


async def record(tab: Tab, button: str) -> None:
    """Record some sound by pressing a button."""
    sound = base64.b64encode(wave(5, 20 * RATE).tobytes()).decode()
    await tab.click(button)
    await tab.reads(button, "Finish")
    await tab.value(f"say('{sound}')")
    await tab.wait("isCaptured")
    await tab.click(button)
    await tab.wait(f"document.querySelector('{button}').innerText !== 'Finish'")


async def test_page_shows_errors_at_their_field(start: Start, browser: Browser) -> None:
    running = await start([ErrorText("invalid request: text: expected words, got '!'")])
    tab = await browser.tab()
    await tab.open(running.url, READY)
    for field, written, told in (
        ("text", " ", "Write the text to speak."),
        ("text", "!", "Expected words, got '!'."),
        ("seed", "x", "The seed must be a whole number; leave it empty for a new one."),
    ):
        await tab.write(f"#{field}", written)
        await tab.click("#speak-button")
        await tab.reads(f"#{field}-error", told)
        assert await tab.value("document.activeElement.id") == field
        assert await tab.value(f"document.querySelector('#{field}').getAttribute('aria-invalid')") == "true"
    assert not await tab.text("#text-error"), "what was wrong before is told still"


async def test_page_reports_interrupted_speech(start: Start, browser: Browser) -> None:
    running = await start([CHUNKS[0], Abort(grpc.StatusCode.INTERNAL, "")])
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.click("#speak-button")
    # The connection ends with the error, and a browser may drop what came just before its end.
    told = ["The model failed on this. Try again, perhaps with another text.", "The response was interrupted."]
    await tab.wait(f"{told}.includes(document.querySelector('#speak-error').innerText)")
    assert await tab.value("document.querySelector('#download').hidden")


async def test_page_requests_a_needed_key_and_keeps_it_in_the_tab(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS, keys=(KEY,))
    tab = await browser.tab()
    await tab.open(running.url, "!document.querySelector('#key-form').hidden")
    assert not await tab.value(READY)
    await tab.write("#key", "ключ")
    await tab.press("Enter")
    await tab.reads("#key-error", "A key has only letters")
    await tab.write("#key", "a-wrong-key-of-mine")
    await tab.press("Enter")
    await tab.reads("#key-error", "The gateway does not know this key.")
    assert await tab.value("sessionStorage.length") == 0
    await tab.write("#key", KEY)
    await tab.press("Enter")
    await tab.wait(READY)
    assert await tab.value("document.querySelector('#key-form').hidden")
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    assert await tab.value("[localStorage.length, document.cookie, document.querySelector('#key').value]") == [
        0,
        "",
        "",
    ]
    await tab.open(running.url, READY)  # again, with the key of the tab
    assert KEY not in "".join(tab.urls)


async def test_page_requests_and_stores_no_key_if_none_is_configured(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS)
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    assert await tab.value("document.querySelector('#key-form').hidden")
    assert await tab.value("sessionStorage.length") == 0
    assert len(tab.urls) > 10
    assert [url for url in tab.urls if not url.startswith(f"{running.url}/")] == []
    assert tab.complaints == []


async def test_page_transcribes_a_file_and_a_recording(start: Start, browser: Browser, tmp_path: Path) -> None:
    said = [Chunk(0, None, text="It is "), Chunk(1, None, text="late.", is_final=True, is_last=True)]
    running = await start(said)
    tab = await listened(browser, running.url, MICROPHONE)
    await tab.click("#transcribe-tab")
    file = tmp_path / "speech.wav"
    file.write_bytes(b"RIFF and more")
    await tab.choose("#file", file)
    await tab.reads("#transcribe-status", "Transcript:")
    assert await tab.text("#transcript") == "It is late."
    assert running.behind.requests[0]["audio"] == b"RIFF and more"
    await record(tab, "#record-button")
    await until_async(lambda: len(running.behind.requests) >= 2)
    recorded = running.behind.requests[1]["audio"]
    assert recorded[:4] == b"RIFF"
    assert int.from_bytes(recorded[40:44], "little") == len(recorded) - 44


async def test_page_shows_file_errors_at_the_file_field(start: Start, browser: Browser, tmp_path: Path) -> None:
    running = await start([ErrorText("invalid request: audio: expected a wav, flac, ogg or mp3 file")])
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.click("#transcribe-tab")
    (tmp_path / "notes.txt").write_text("none")
    await tab.choose("#file", tmp_path / "notes.txt")
    await tab.reads("#file-error", "Expected a wav")


async def test_page_conversation_continues_over_turns_with_audio(start: Start, browser: Browser) -> None:
    running = await start([Chunk(9, None, text="Fine."), *CHUNKS], TALKS)
    tab = await listened(browser, running.url, MICROPHONE)
    await tab.click("#converse-tab")
    assert await shown_buttons(tab) == ["Call", "Record a turn", "Send"]
    for turn in (1, 2):
        await tab.write("#turn", "How are you?")
        await tab.press("Enter")
        await tab.wait(f"heard.length === {turn * len(ALL)}")
        await tab.reads("#converse-status", "Your turn.")
    assert await tab.value("heard") == ALL + ALL
    assert (await tab.text("#turns")).splitlines() == ["How are you?", "Fine."] * 2
    question, answer = {"role": "user", "text": "How are you?"}, {"role": "assistant", "text": "Fine."}
    assert json.loads(running.behind.requests[1]["messages"]) == [question, answer, question]
    assert await shown_buttons(tab) == ["Call", "Record a turn", "Send", "Start again"]
    await record(tab, "#talk-button")
    await tab.wait(f"heard.length === {3 * len(ALL)}")
    assert running.behind.requests[2]["audio"][:4] == b"RIFF"


async def shown_buttons(tab: Tab) -> list[str]:
    """Return the names of the visible buttons of a conversation."""
    buttons = "[...document.querySelectorAll('#converse button')].filter((each) => each.checkVisibility())"
    names: list[str] = await tab.value(f"{buttons}.map((each) => each.innerText)")
    return names


async def test_page_reply_shows_progress_and_can_be_stopped(start: Start, browser: Browser) -> None:
    go = asyncio.Event()
    running = await start([Until(go), LONG, Until(asyncio.Event())], TALKS)
    tab = await listened(browser, running.url)
    await tab.click("#converse-tab")
    await tab.write("#turn", "How are you?")
    await tab.press("Enter")
    await tab.reads("#converse-status", "Thinking…")
    assert await shown_buttons(tab) == ["Stop"]
    go.set()
    await tab.reads("#converse-status", "Speaking…")
    await tab.click("#hush-button")
    await tab.reads("#converse-status", "Stopped.")
    async with asyncio.timeout(PATIENCE_S):
        await running.behind.cancelled.wait()
    assert await shown_buttons(tab) == ["Call", "Record a turn", "Send", "Start again"]
    assert await tab.value("document.activeElement.id") == "turn"


async def test_call_confirms_before_clearing_a_written_conversation(start: Start, browser: Browser) -> None:
    running = await start([Chunk(9, None, text="Fine."), *CHUNKS], TALKS)
    tab = await listened(browser, running.url, MICROPHONE)
    await tab.click("#converse-tab")
    await tab.write("#turn", "How are you?")
    await tab.press("Enter")
    await tab.reads("#converse-status", "Your turn.")
    await tab.click("#call-button")
    await tab.reads("#converse-status", "A call clears this conversation.")
    assert (await tab.text("#turns")).splitlines() == ["How are you?", "Fine."]
    assert await tab.text("#call-button") == "Clear it and call"
    await tab.click("#call-button")
    await tab.reads("#converse-status", "Listening: speak.")
    assert await tab.text("#turns") == ""
    assert await shown_buttons(tab) == ["Hang up"]
    await tab.click("#call-button")
    await tab.reads("#converse-status", "The call is over.")
    assert await shown_buttons(tab) == ["Call", "Record a turn", "Send"]


async def test_a_call_detects_turns_and_can_be_interrupted(start: Start, browser: Browser) -> None:
    replies = iter([[Chunk(9, None, text="Fine."), *CHUNKS], [LONG, Until(asyncio.Event())], CHUNKS])
    written = [Chunk(0, None, text="It is late.", is_final=True, is_last=True)]

    def script(request: Request) -> list[Step]:
        return written if request["task"] == b"asr" else next(replies)

    running = await start(script, TALKS)
    tab = await listened(browser, running.url, MICROPHONE)
    said = base64.b64encode(spoken()[: 3 * RATE // 2].tobytes()).decode()
    await tab.click("#converse-tab")
    await tab.click("#call-button")
    await tab.reads("#converse-status", "Listening: speak.")
    await tab.value(f"say('{said}')")
    await tab.wait(f"heard.length === {len(ALL)}")
    assert await tab.value("heard") == ALL
    await tab.reads("#turns", "It is late.\nFine.")
    await tab.reads("#converse-status", "Listening: speak.")
    await tab.value(f"say('{said}')")
    await tab.wait(f"heard.length > {len(ALL)}")
    await tab.value(f"say('{said}')")
    async with asyncio.timeout(PATIENCE_S):
        await running.behind.cancelled.wait()
    await tab.wait(f"heard.length > {2 * len(ALL)}")  # silent, then the third reply
    asked = [json.loads(each["messages"]) for each in running.behind.requests if each["task"] == b"hearing"]
    roles = [turn["role"] for turn in asked[1]]
    assert roles == ["user", "assistant", "user"]
    assert asked[1][1]["text"] == "Fine."
    await tab.press("Escape")
    await tab.reads("#converse-status", "The call is over.")
    assert not await tab.value("document.querySelector('#send-button').hidden")
    assert tab.complaints == []


async def test_page_holds_a_full_duplex_call(start: Start, browser: Browser) -> None:
    """Speech is played while the microphone is on, and the lag is shown."""
    partner = Partner()
    tab = await listened(browser, (await start(partner, DUPLEX)).url, MICROPHONE)
    assert await tab.text("#call-button") == "Talk with it"
    assert await tab.value("document.querySelector('#talk-button').hidden")
    said = base64.b64encode(spoken()[: 3 * RATE // 2].tobytes()).decode()
    await tab.click("#call-button")
    await tab.reads("#converse-status", "Listening: speak.")
    await tab.value(f"say('{said}')")
    await tab.wait("heard.length > 0")
    await tab.wait("/^Talking: \\d+\\.\\d\\d s behind\\.$/.test(document.querySelector('#converse-status').innerText)")
    await tab.reads("#turns", "so")
    await tab.press("Escape")
    await tab.reads("#converse-status", "The call is over.")
    assert len(partner.heard) > 0.3 * RATE
    assert await tab.text("#call-button") == "Talk with it"
    assert tab.complaints == []


async def test_page_sends_role_and_voice_of_a_full_duplex_call(start: Start, browser: Browser) -> None:
    partner = Partner()
    tab = await listened(browser, (await start(partner, PERSONA)).url, MICROPHONE)
    assert not await tab.value("document.querySelector('#persona').hidden")
    voice = PROFILE["voices"][1]
    await tab.value("document.querySelector('#role').value = 'You teach.'; 1")
    await tab.value(f"document.querySelector('#call-voice').value = '{voice}'; 1")
    said = base64.b64encode(spoken()[: 3 * RATE // 2].tobytes()).decode()
    await tab.click("#call-button")
    await tab.reads("#converse-status", "Listening: speak.")
    await tab.value(f"say('{said}')")
    await tab.reads("#turns", "so")
    await tab.press("Escape")
    assert partner.turns == [{"role": "system", "text": "You teach."}]
    assert partner.options["voice"] == voice
    assert tab.complaints == []


async def test_page_shows_an_error_for_a_rejected_call(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS, TALKS, limits=Limits(max_sessions=0, drain_s=1))
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.click("#converse-tab")
    await tab.click("#call-button")
    await tab.reads("#call-button-error", "The gateway did not accept the call.")
    assert await tab.text("#call-button") == "Call"


async def test_page_compares_two_guidance_scales(start: Start, browser: Browser) -> None:
    def script(request: Request) -> list[Step]:
        scale = round(json.loads(request["options"])["guidance_scale"])
        if scale > 100:
            return [ErrorText("invalid request: options.guidance_scale: expected at most 100, got 400")]
        pcm = WAVES[scale - 1]
        return [Chunk(0, len(pcm), is_16_bit=True, pcm=pcm, is_final=True, is_last=True)]

    running = await start(script)
    tab = await listened(browser, running.url)
    await tab.click("#compare summary")
    await tab.write("#seed", "11")
    await tab.write("#right-scale", "2")
    await tab.click("#compare-button")
    await tab.reads("#compare-status", "Both are ready; their seed is 11.")
    assert await tab.text("#takes h2") == "Unguided"
    options = [json.loads(each["options"]) for each in running.behind.requests]
    assert sorted(each.pop("guidance_scale") for each in options) == [1, 2]
    assert options[0] == options[1]
    assert options[0]["seed"] == 11
    for button, samples in (("#right-play", WAVES[1]), ("#left-play", WAVES[0])):
        await tab.value("heard.length = 0")
        await tab.click(button)
        await tab.wait(f"heard.length === {len(samples)}")
        assert await tab.value("heard") == samples.tolist()
    for written, line, told in (
        ("much", "#left-scale-error", "The strength must be a number"),
        ("400", "#compare-error", "Expected at most 100, got 400."),
    ):
        await tab.write("#left-scale", written)
        await tab.press("Enter")
        await tab.reads(line, told)


async def test_page_stores_uses_and_deletes_a_recorded_voice(start: Start, browser: Browser, tmp_path: Path) -> None:
    running = await start(CHUNKS, CLONES | {"voices": []}, voices=tmp_path / "voices")
    tab = await browser.tab()
    await tab.open(running.url, READY)
    assert await tab.value("document.querySelector('#voice-field').hidden")
    await tab.click("#voices-tab")
    file = tmp_path / "me.wav"
    file.write_bytes(b"RIFF and more")
    for field, written in (("sample", None), ("voice-name", "mine"), ("consent", "my own")):
        await tab.click("#keep-button")
        await tab.wait(f"document.querySelector('#{field}-error').checkVisibility()")
        await (tab.choose("#sample", file) if written is None else tab.write(f"#{field}", written))
    await tab.write("#said", "It is me.")
    await tab.click("#keep-button")
    await tab.reads("#voices-status", "mine is stored.")
    assert running.behind.requests[-1]["audio"] == b"RIFF and more"
    assert (await tab.text("#kept")).split() == ["mine", "my", "own", "Speak", "Delete"]
    await tab.click("#kept button")
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    system, *_ = json.loads(running.behind.requests[-1]["messages"])
    assert system == {"role": "system", "audio": "audio", "text": "It is me."}
    await tab.click("#voices-tab")
    for _ in range(2):  # asked, and meant
        await tab.click("#kept button:last-child")
    await tab.reads("#voices-status", "mine is deleted.")
    assert list((tmp_path / "voices").glob("*/*")) == []
    assert await tab.value("document.querySelector('#voice-field').hidden")


async def test_page_hides_unsupported_features(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS, PROFILE | {"voices": [], "tasks": PROFILE["tasks"][:1]})
    tab = await browser.tab()
    await tab.open(running.url, READY)
    assert await tab.value("document.querySelector('#tabs').hidden")
    assert await tab.value("document.querySelector('#voice-field').hidden")
    assert await tab.text("#does") == "This model only speaks."
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")


async def test_page_is_accessible_by_keyboard_and_name(start: Start, browser: Browser, tmp_path: Path) -> None:
    running = await start(CHUNKS, DOES_ALL, voices=tmp_path)
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.value("document.querySelector('#compare').open = true")
    reached = []
    for _ in range(13):
        await tab.press("Tab")
        reached.append(await tab.value("document.activeElement.id"))
    assert [each for each in reached if each][:6] == [
        "speak-tab",
        "text",
        "voice",
        "listen-button",
        "seed",
        "speak-button",
    ]
    await tab.value("document.querySelector('#speak-tab').focus()")
    for name in (*TABS[1:], TABS[0]):
        await tab.press("ArrowRight")
        assert await tab.value("document.activeElement.id") == f"{name}-tab"
        assert await tab.value(f"!document.querySelector('#{name}').hidden")
        nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
        named = {
            "button": 1, "textbox": 0, "combobox": 0, "tab": 4, "tabpanel": 1, "tablist": 1, "status": 1, "log": 0,
        }  # fmt: skip
        for node in nodes:
            role = node.get("role", {}).get("value")
            if not node["ignored"] and role in named and role != "status":
                assert node["name"]["value"], (name, node)
        roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
        assert all(roles.count(role) >= least for role, least in named.items()), roles


@pytest.mark.parametrize("width", [320, 390])
async def test_page_fits_a_phone(start: Start, browser: Browser, tmp_path: Path, width: int) -> None:
    running = await start(CHUNKS, DOES_ALL, voices=tmp_path)
    tab = await browser.tab()
    await tab.send("Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=2, mobile=True)
    await tab.send("Emulation.setEmulatedMedia", features=[{"name": "hover", "value": "none"}])
    await tab.open(running.url, READY)
    assert not await tab.value("document.querySelector('#text-hint').checkVisibility()"), "a phone has no such keys"
    await tab.click("#speak-button")
    await tab.reads("#speak-status", "Finished")
    await tab.click("#figures summary")
    await tab.click("#compare summary")
    await tab.click("#compare-button")
    await tab.reads("#compare-status", "Both are ready")
    for name in TABS:
        await tab.click(f"#{name}-tab")
        assert await tab.value("document.documentElement.scrollWidth") <= width, name
        over = (
            "[...document.body.querySelectorAll('*')].filter((each) => each.getBoundingClientRect().right > innerWidth)"
        )
        assert await tab.value(f"{over}.map((each) => each.id || each.tagName)") == []


async def test_light_and_dark_colours_differ_and_have_enough_contrast(start: Start, browser: Browser) -> None:
    running = await start(CHUNKS, TALKS)
    tab = await browser.tab()
    await tab.open(running.url, READY)
    papers = []
    for scheme in ("light", "dark"):
        await tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await tab.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        shown = "getComputedStyle(document.body).getPropertyValue('--' + name)"
        colours = await tab.value(f"Object.fromEntries({NAMES}.map((name) => [name, {shown}]))")
        papers.append(await tab.value("getComputedStyle(document.body).backgroundColor"))
        for behind, names in (
            ("paper", ["ink", "quiet"]),
            ("card", ["ink", "quiet", "wrong"]),
            ("field", ["ink", "quiet"]),
            ("soft", ["ink", "accent-strong"]),
            ("accent", ["on-accent"]),
            ("accent-strong", ["on-accent"]),
        ):
            for name in names:
                assert contrast(colours[name], colours[behind]) >= 4.5, (scheme, name, behind)
    assert papers[0] != papers[1]


def contrast(one: str, other: str) -> float:
    """Return the WCAG 2 contrast ratio of two colours (#rrggbb), from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour.strip()[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
