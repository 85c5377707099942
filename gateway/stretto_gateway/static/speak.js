// The panel that speaks a text.

import { element, enable, forgive, tell } from "./form.js";
import { events, post, samplesOf } from "./gateway.js";
import { Playback, RATE } from "./player.js";
import { wavFile } from "./recording.js";
import { Waveform } from "./waveform.js";

const FIELDS = { input: "text", voice: "voice", seed: "seed" }; // of the API, and the page's
const MAX_SEED = 2 ** 31;
const seconds = (value, digits = 1) => `${value.toFixed(digits)} s`;

class SpeakPanel {
  #request = null; // an AbortController while one is under way
  #playback = null;
  #begunMs = 0;
  #words = []; // {start, mark}
  #waveform = new Waveform(element("waveform"));

  constructor() {
    const panel = element("speak");
    panel.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.speak();
    });
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.speak();
      if (event.key === "Escape") this.stop();
    });
    element("stop-button").addEventListener("click", () => this.stop());
    element("again-button").addEventListener("click", () => this.playAgain());
    const redraw = () => this.#show();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("resize", redraw);
  }

  async speak() {
    this.stop();
    forgive(element("speak"));
    const record = this.#record();
    if (record === null) return;
    const request = (this.#request = new AbortController());
    const playback = this.#begin(record.seed);
    try {
      await this.#receive(await post("v1/audio/speech", record, request.signal), playback);
      playback.end();
      this.#say("All of it is here.");
      this.#offer();
      await playback.finished;
      if (this.#request === request) this.#say(`Finished: ${seconds(playback.numSamples / RATE)} of sound.`);
    } catch (error) {
      playback.stop();
      if (error.name !== "AbortError") this.#fail(error);
    }
    if (this.#request === request) this.#rest();
  }

  /** What is asked for, or null where a field is wrong. */
  #record() {
    const [text, voice, seed] = ["text", "voice", "seed"].map((id) => element(id).value.trim());
    if (text === "") {
      tell(element("text"), "Write what shall be said.");
      return null;
    }
    if (!/^\d{0,15}$/.test(seed)) {
      tell(element("seed"), "A seed is a whole number, or nothing for a new one.");
      return null;
    }
    return {
      input: text,
      ...(voice === "" ? {} : { voice }),
      seed: seed === "" ? Math.floor(Math.random() * MAX_SEED) : Number(seed),
      response_format: "pcm",
      stream_format: "sse",
      timestamps: true,
    };
  }

  #begin(seed) {
    this.#begunMs = performance.now();
    this.#waveform.clear();
    this.#words = [];
    element("words").replaceChildren();
    element("words").hidden = true;
    element("download").hidden = true;
    enable(element("again-button"), false, element("text"));
    for (const id of ["first-sound", "ahead", "length", "speed"]) element(id).textContent = "–";
    element("used-seed").textContent = seed;
    element("sound").hidden = false;
    this.#say("Speaking…");
    this.#waveform.draw(0);
    return this.#play();
  }

  #play() {
    const playback = (this.#playback = new Playback());
    enable(element("stop-button"), true);
    const follow = () => {
      if (this.#playback !== playback) return;
      if (playback.numSamples > 0) this.#show();
      if (!playback.isOver) requestAnimationFrame(follow);
    };
    follow();
    return playback;
  }

  async #receive(answer, playback) {
    let isWhole = false;
    for await (const event of events(answer)) {
      if (event.type === "speech.audio.words") event.words.forEach((word) => this.#addWord(word));
      if (event.type === "speech.audio.done") isWhole = true;
      if (event.type !== "speech.audio.delta") continue;
      const samples = samplesOf(event.audio);
      playback.add(samples);
      this.#waveform.add(samples, RATE);
      const madeS = playback.numSamples / RATE;
      const tookS = (performance.now() - this.#begunMs) / 1000;
      element("length").textContent = seconds(madeS);
      element("speed").textContent = `${(madeS / tookS).toFixed(1)} ×`;
    }
    if (!isWhole) throw new Error("The answer broke off.");
  }

  #addWord({ word, start }) {
    const mark = document.createElement("span");
    mark.textContent = word;
    element("words").append(mark, " ");
    element("words").hidden = false;
    this.#words.push({ start, mark });
  }

  #show() {
    if (this.#playback === null) return;
    const playedS = this.#playback.numPlayed / RATE;
    this.#waveform.draw(playedS);
    element("ahead").textContent = seconds(Math.max(0, this.#playback.aheadS));
    if (this.#request !== null && this.#playback.firstSoundMs !== null) {
      element("first-sound").textContent = seconds((this.#playback.firstSoundMs - this.#begunMs) / 1000, 2);
    }
    const now = this.#playback.isOver ? undefined : this.#words.findLast(({ start }) => start <= playedS);
    for (const each of this.#words) {
      each.mark.classList.toggle("said", each.start <= playedS);
      each.mark.classList.toggle("now", each === now);
    }
  }

  /** Fall silent, and have the gateway make no more of it. */
  stop() {
    if (this.#playback === null || this.#playback.isOver) return;
    this.#request?.abort();
    this.#playback.stop();
    this.#say("Stopped.");
    if (this.#request === null) this.#rest();
  }

  async playAgain() {
    const { chunks } = this.#playback;
    const playback = this.#play();
    enable(element("again-button"), false, element("stop-button"));
    chunks.forEach((chunk) => playback.add(chunk));
    playback.end();
    await playback.finished;
    if (this.#playback === playback) this.#rest();
  }

  #offer() {
    const link = element("download");
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(wavFile(this.#playback.chunks, RATE));
    link.hidden = false;
  }

  #rest() {
    this.#show();
    this.#request = null;
    enable(element("stop-button"), false, element("speak-button"));
    enable(element("again-button"), this.#playback.numSamples > 0);
  }

  #fail(error) {
    this.#say("");
    if (this.#playback.numSamples === 0) element("sound").hidden = true;
    const field = FIELDS[error.param];
    if (field !== undefined) return tell(element(field), error.message);
    element("speak-error").textContent = error.message;
    element("speak-error").hidden = false;
  }

  #say(message) {
    element("speak-status").textContent = message;
  }
}

/** Begin the panel; returns a function that shows it a model and its voices. */
export function speakPanel() {
  new SpeakPanel();
  return ({ voices }) => {
    element("voice-field").hidden = voices.length === 0;
    element("voice").replaceChildren(...voices.map((name) => new Option(name)));
  };
}
