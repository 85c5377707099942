// Text-to-speech panel.

import { element, enable, forgive, show, tell } from "./form.js";
import { speech } from "./gateway.js";
import { Playback, RATE } from "./player.js";
import { VoicePreview } from "./preview.js";
import { wavFile } from "./recording.js";
import { Waveform } from "./waveform.js";

const FIELDS = { input: "text", voice: "voice", seed: "seed" }; // page fields, keyed by API field
const MAX_SEED = 2 ** 31;
const NO_DEVICE = "This browser has no sound device. You can download the file.";

export const seconds = (value, digits = 1) => `${value.toFixed(digits)} s`;

/** Return the form's request, with a random seed if none is given; if a field is invalid, show an error and return null. */
export function speechRequest() {
  const [text, voice, seed] = ["text", "voice", "seed"].map((id) => element(id).value.trim());
  if (text === "") {
    tell(element("text"), "Write the text to speak.");
    return null;
  }
  if (!/^\d{0,15}$/.test(seed)) {
    tell(element("seed"), "The seed must be a whole number; leave it empty for a new one.");
    return null;
  }
  return {
    input: text,
    ...(voice === "" ? {} : { voice }),
    seed: seed === "" ? Math.floor(Math.random() * MAX_SEED) : Number(seed),
  };
}

/** Show an error at the field that caused it, or else in `line`. */
export function tellOf(error, line) {
  const field = FIELDS[error.param];
  if (field !== undefined) return tell(element(field), error.message);
  line.textContent = error.message;
  line.hidden = false;
}

/** Return in words what the checks of a speech have found, from its last event; empty if there is nothing to tell. */
export function findings({ faults = [], redrawn = 0, unchecked = [] }) {
  const told = [];
  const named = faults.map(({ fault, start_s }) => `${fault.replaceAll("_", " ")} at ${seconds(start_s)}`);
  if (faults.length > 0) told.push(`Faults found: ${named.join(", ")}.`);
  if (redrawn > 0) told.push(`Attempts given up: ${redrawn}.`);
  if (unchecked.length > 0) told.push(`Words not checked: ${[...new Set(unchecked)].join(", ").replaceAll("_", " ")}.`);
  return told.join(" ");
}

class SpeakPanel {
  #request = null; // AbortController of the request in progress
  #playback = null;
  #begunMs = 0;
  #words = []; // {start, mark}
  #isHeard = false; // true once the first sample has been played
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
    for (const example of element("examples").querySelectorAll("button")) {
      example.addEventListener("click", () => {
        element("text").value = example.dataset.text;
        element("text").focus();
      });
    }
    element("again-button").addEventListener("click", () => this.playAgain());
    const redraw = () => this.#show();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("resize", redraw);
  }

  async speak() {
    this.stop();
    forgive(element("speak"));
    const record = speechRequest();
    if (record === null) return;
    const request = (this.#request = new AbortController());
    const playback = this.#begin(record.seed);
    try {
      await this.#receive(speech({ ...record, timestamps: true }, request.signal), playback);
      playback.end();
      this.#offer();
      await playback.finished;
      const lengthS = playback.numSamples / RATE;
      if (this.#request === request && !playback.isMute) this.#say(`Finished: ${seconds(lengthS)} of audio.`);
    } catch (error) {
      playback.stop();
      if (error.name !== "AbortError") this.#fail(error);
    }
    if (this.#request === request) this.#rest();
  }

  #begin(seed) {
    this.#begunMs = performance.now();
    this.#waveform.clear();
    this.#words = [];
    element("words").replaceChildren();
    element("words").hidden = true;
    element("download").hidden = true;
    element("findings").hidden = true;
    enable(element("again-button"), false, element("text"));
    for (const id of ["first-sound", "ahead", "length", "speed"]) element(id).textContent = "–";
    element("used-seed").textContent = seed;
    element("sound").hidden = false;
    this.#say("Preparing…");
    this.#waveform.draw(0);
    return this.#play();
  }

  #play() {
    const playback = (this.#playback = new Playback());
    show(element("stop-button"), true);
    this.#isHeard = false;
    const follow = () => {
      if (this.#playback !== playback) return;
      if (playback.numSamples > 0) this.#show();
      if (!playback.isOver) requestAnimationFrame(follow);
    };
    follow();
    return playback;
  }

  async #receive(parts, playback) {
    for await (const { words = [], samples, report } of parts) {
      words.forEach((word) => this.#addWord(word));
      if (report !== undefined) this.#tellFindings(findings(report));
      if (samples === undefined) continue;
      playback.add(samples);
      this.#waveform.add(samples, RATE);
      const madeS = playback.numSamples / RATE;
      const tookS = (performance.now() - this.#begunMs) / 1000;
      element("length").textContent = seconds(madeS);
      element("speed").textContent = `${(madeS / tookS).toFixed(1)} ×`;
    }
  }

  #tellFindings(told) {
    element("findings").hidden = told === "";
    element("findings").textContent = told;
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
    if (!this.#isHeard && (playedS > 0 || this.#playback.isMute)) {
      this.#isHeard = true;
      this.#say(this.#playback.isMute ? NO_DEVICE : "Speaking…");
    }
    if (this.#request !== null && this.#playback.firstSoundMs !== null) {
      element("first-sound").textContent = seconds((this.#playback.firstSoundMs - this.#begunMs) / 1000, 2);
    }
    const now = this.#playback.isOver ? undefined : this.#words.findLast(({ start }) => start <= playedS);
    for (const each of this.#words) {
      each.mark.classList.toggle("said", each.start <= playedS);
      each.mark.classList.toggle("now", each === now);
    }
  }

  /** Stop playback and generation. */
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
    this.#say("");
    chunks.forEach((chunk) => playback.add(chunk));
    playback.end();
    await playback.finished;
    if (this.#playback !== playback) return;
    if (!playback.isMute) this.#say("");
    this.#rest();
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
    show(element("stop-button"), false, element("speak-button"));
    enable(element("again-button"), this.#playback.numSamples > 0);
  }

  #fail(error) {
    this.#say("");
    if (this.#playback.numSamples === 0) element("sound").hidden = true;
    tellOf(error, element("speak-error"));
  }

  #say(message) {
    element("speak-status").textContent = message;
  }
}

function option({ id, name, gender, language }) {
  const details = [gender, language].filter(Boolean).join(", ");
  return new Option(details === "" ? name : `${name} (${details})`, id);
}

/** Set up the panel; return a function that lists the named voices and the recorded ones. */
export function speakPanel() {
  const panel = new SpeakPanel();
  const preview = new VoicePreview(() => panel.stop());
  return ({ voices, names, data }) => {
    const menu = element("voice");
    const chosen = menu.value;
    const own = document.createElement("optgroup");
    own.label = "From recordings";
    own.append(...data.map(option));
    const named = voices.filter(({ id }) => names.includes(id)).map(option);
    const others = named.length > 0 ? named : [new Option("the model’s own", "")];
    menu.replaceChildren(...others, ...(data.length > 0 ? [own] : []));
    if ([...menu.options].some(({ value }) => value === chosen)) menu.value = chosen;
    element("voice-field").hidden = menu.options.length < 2 && names.length === 0;
    preview.show(voices);
  };
}
