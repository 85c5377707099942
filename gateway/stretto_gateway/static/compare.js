// Comparison of two guidance scales for the same text, voice and seed.

import { element, forgive, tell } from "./form.js";
import { speech } from "./gateway.js";
import { Playback, RATE } from "./player.js";
import { findings, seconds, speechRequest, tellOf } from "./speak.js";
import { Waveform } from "./waveform.js";

const SIDES = ["left", "right"];

class Take {
  #chunks = [];
  #playback = null;

  constructor(side) {
    this.side = side;
    this.waveform = new Waveform(element(`${side}-waveform`));
    this.button = element(`${side}-play`);
    this.button.addEventListener("click", () => (this.isPlaying ? this.stop() : this.#play()));
  }

  get isPlaying() {
    return this.#playback !== null && !this.#playback.isOver;
  }

  /** Return the guidance scale in this side's field; if it is invalid, show an error and return null. */
  strength() {
    const field = element(`${this.side}-scale`);
    const written = field.value.trim().replace(",", ".");
    if (/^\d{1,3}(\.\d{1,6})?$/.test(written)) return Number(written);
    tell(field, "The strength must be a number; 1 is without guidance.");
    return null;
  }

  /** Generate the speech with this guidance scale. */
  async make(record, scale, signal) {
    this.stop();
    this.#chunks = [];
    this.waveform.clear();
    this.waveform.draw(0);
    this.button.disabled = true;
    element(`${this.side}-name`).textContent = scale === 1 ? "Unguided" : `Guided, ${scale}`;
    element(`${this.side}-length`).textContent = "…";
    let numSamples = 0;
    let told = "";
    for await (const { samples, report } of speech({ ...record, guidance_scale: scale }, signal)) {
      if (report !== undefined) told = findings(report);
      if (samples === undefined) continue;
      this.#chunks.push(samples);
      numSamples += samples.length;
      this.waveform.add(samples, RATE);
      this.waveform.draw(0);
    }
    element(`${this.side}-length`).textContent = `${seconds(numSamples / RATE)} ${told}`;
    this.button.disabled = false;
  }

  #play() {
    const playback = (this.#playback = new Playback());
    this.#chunks.forEach((chunk) => playback.add(chunk));
    playback.end();
    this.button.textContent = "Stop";
    const follow = () => {
      this.waveform.draw(playback.numPlayed / RATE);
      if (!playback.isOver) return requestAnimationFrame(follow);
      if (this.#playback === playback) this.button.textContent = "Play";
    };
    follow();
  }

  stop() {
    this.#playback?.stop();
  }

  redraw() {
    if (this.#chunks.length > 0) this.waveform.draw(this.isPlaying ? this.#playback.numPlayed / RATE : 0);
  }
}

class ComparePanel {
  #request = null; // AbortController of the request in progress
  #takes = SIDES.map((side) => new Take(side));

  constructor() {
    element("compare").querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.make();
    });
    const redraw = () => this.#takes.forEach((take) => take.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("resize", redraw);
  }

  async make() {
    this.#request?.abort();
    forgive(element("speak"));
    const record = speechRequest();
    const scales = record === null ? [null] : this.#takes.map((take) => take.strength());
    if (scales.includes(null)) return;
    const request = (this.#request = new AbortController());
    element("takes").hidden = false;
    this.#say(`Making both with seed ${record.seed}…`);
    try {
      await Promise.all(this.#takes.map((take, n) => take.make(record, scales[n], request.signal)));
      this.#say(`Both are ready; their seed is ${record.seed}.`);
    } catch (error) {
      if (this.#request !== request) return; // replaced by a newer request
      request.abort();
      element("takes").hidden = true;
      this.#say("");
      tellOf(error, element("compare-error"));
    }
  }

  #say(message) {
    element("compare-status").textContent = message;
  }
}

/** Set up the panel. */
export function comparePanel() {
  new ComparePanel();
}
