// Preview of the chosen voice: a sentence that the gateway speaks in it.

import { element, forgive, tell } from "./form.js";
import { ask } from "./gateway.js";
import { Playback } from "./player.js";

export class VoicePreview {
  #voices = new Map(); // by id
  #request = null; // AbortController of the preview in progress
  #playback = null;

  /** Args: `begun`, called before a preview is played. */
  constructor(begun) {
    this.begun = begun;
    element("listen-button").addEventListener("click", () => (this.#request === null ? this.#play() : this.#stop()));
    element("voice").addEventListener("change", () => {
      this.#stop();
      this.#describe();
    });
  }

  /** Set the voices that can be chosen. */
  show(voices) {
    this.#voices = new Map(voices.map((voice) => [voice.id, voice]));
    this.#describe();
  }

  #describe() {
    const voice = this.#voices.get(element("voice").value);
    element("listen-button").hidden = voice === undefined;
    element("voice-hint").textContent = voice?.description ?? "";
  }

  async #play() {
    this.begun();
    forgive(element("speak"));
    const url = new URL(this.#voices.get(element("voice").value).preview.slice(1), document.baseURI);
    url.searchParams.set("response_format", "pcm");
    const request = new AbortController();
    const playback = new Playback({ keeps: false });
    this.#request = request;
    this.#playback = playback;
    this.#name("Stop", "Stop the preview");
    try {
      const answer = await ask(url, { signal: request.signal });
      playback.add(new Int16Array(await answer.arrayBuffer()));
      playback.end();
      await playback.finished;
    } catch (error) {
      playback.stop();
      if (error.name !== "AbortError") tell(element("voice"), error.message);
    }
    if (this.#request === request) this.#rest();
  }

  #stop() {
    this.#request?.abort();
    this.#playback?.stop();
    this.#rest();
  }

  #rest() {
    this.#request = null;
    this.#name("Listen", "Listen to the voice");
  }

  #name(text, label) {
    element("listen-button").textContent = text;
    element("listen-button").ariaLabel = label;
  }
}
