// Transcription panel.

import { element, forgive, tell } from "./form.js";
import { ask, events } from "./gateway.js";
import { recordWith } from "./recording.js";

class TranscribePanel {
  #request = null; // AbortController of the request in progress

  constructor() {
    const drop = element("drop");
    element("file").addEventListener("change", ({ target }) => this.write(target.files[0]));
    for (const kind of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.write(event.dataTransfer.files[0]);
      });
    }
    recordWith(element("record-button"), {
      begun: () => (forgive(element("transcribe")), this.#say("Recording…")),
      done: (file) => this.write(new File([file], "recording.wav")),
      failed: (error) => this.#fail(error),
    });
    element("copy-button").addEventListener("click", async () => {
      await navigator.clipboard.writeText(element("transcript").textContent);
      this.#say("Copied.");
    });
    element("transcribe").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  }

  async write(file) {
    if (file === undefined) return;
    this.#request?.abort();
    const request = (this.#request = new AbortController());
    forgive(element("transcribe"));
    const text = element("transcript");
    text.textContent = "";
    text.ariaBusy = "true"; // screen readers read it once it is complete
    element("copy-button").hidden = true;
    this.#say(`Listening to ${file.name}…`);
    try {
      const isCut = await this.#receive(await this.#send(file, request.signal), text);
      const found = text.textContent === "" ? "No speech was found." : "Transcript:";
      this.#say(isCut ? "Transcript, ended by a limit:" : found);
      element("copy-button").hidden = text.textContent === "" || navigator.clipboard === undefined;
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error);
    }
    text.ariaBusy = "false";
  }

  #send(file, signal) {
    const body = new FormData();
    body.append("stream", "true");
    body.append("file", file);
    return ask("v1/audio/transcriptions", { method: "POST", body, signal });
  }

  async #receive(answer, text) {
    let isWhole = false;
    let isCut = false;
    for await (const event of events(answer)) {
      if (event.type === "transcript.text.delta") text.textContent += event.delta;
      if (event.type === "transcript.text.done") [text.textContent, isWhole] = [event.text, true];
      if (event.finish_reason) isCut = true;
      text.hidden = text.textContent === "";
    }
    if (!isWhole) throw new Error("The response was interrupted.");
    return isCut;
  }

  #fail(error) {
    this.#say("");
    tell(element("file"), error.message);
  }

  #say(message) {
    element("transcribe-status").textContent = message;
  }
}

/** Set up the panel. */
export function transcribePanel() {
  new TranscribePanel();
}
