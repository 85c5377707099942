// The panel that converses, by turns.

import { element, enable, forgive, tell } from "./form.js";
import { events, post, samplesOf } from "./gateway.js";
import { Playback } from "./player.js";
import { recordWith } from "./recording.js";

class ConversePanel {
  #messages = []; // as the API takes them
  #request = null; // an AbortController while one is under way
  #playback = null;
  speaks = true; // whether replies are spoken

  constructor() {
    element("converse").querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#sendText();
    });
    element("turn").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#sendText();
    });
    element("converse").addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
    element("hush-button").addEventListener("click", () => this.stop());
    element("forget-button").addEventListener("click", () => this.#forget());
    recordWith(element("talk-button"), {
      begun: () => (this.stop(), this.#say("Recording…")),
      done: (file) => this.#sendSound(file),
      failed: (error) => tell(element("turn"), error.message),
    });
  }

  #sendText() {
    const text = element("turn").value.trim();
    if (text === "") return tell(element("turn"), "Write something to say.");
    element("turn").value = "";
    return this.#send(text, text);
  }

  async #sendSound(file) {
    const data = await base64Of(file);
    return this.#send([{ type: "input_audio", input_audio: { data, format: "wav" } }], "(spoken)");
  }

  async #send(content, shown) {
    this.stop();
    forgive(element("converse"));
    const messages = [...this.#messages, { role: "user", content }];
    const line = addLine("user", shown);
    const request = (this.#request = new AbortController());
    const form = this.speaks
      ? { modalities: ["text", "audio"], audio: { format: "pcm16" } }
      : { modalities: ["text"] };
    const playback = (this.#playback = this.speaks ? new Playback() : null);
    enable(element("hush-button"), true);
    this.#say("Thinking…");
    try {
      const answer = await post("v1/chat/completions", { messages, stream: true, ...form }, request.signal);
      const text = await this.#receive(answer, playback);
      this.#messages = [...messages, { role: "assistant", content: text === "" ? "(spoken)" : text }];
      playback?.end();
      await playback?.finished;
      if (this.#request === request) this.#say("Your turn.");
    } catch (error) {
      playback?.stop();
      if (error.name === "AbortError") this.#messages = messages;
      else this.#fail(error, line, content);
    }
    if (this.#request === request) this.#rest();
  }

  async #receive(answer, playback) {
    const line = addLine("assistant", "…");
    let text = "";
    let isWhole = false;
    try {
      for await (const event of events(answer)) {
        const [{ delta, finish_reason: reason }] = event.choices;
        text += delta.content ?? delta.audio?.transcript ?? "";
        if (delta.audio?.data) playback.add(samplesOf(delta.audio.data));
        if (text.trim() !== "") line.textContent = text.trim();
        if (reason) isWhole = true;
      }
      if (!isWhole) throw new Error("The answer broke off.");
    } catch (error) {
      if (text.trim() === "") line.remove();
      throw error;
    }
    if (text.trim() === "") line.textContent = "(spoken)";
    return text.trim();
  }

  /** Fall silent; what has been said stays. */
  stop() {
    this.#request?.abort();
    this.#playback?.stop();
    if (this.#request !== null) this.#say("Stopped.");
    this.#rest();
  }

  #forget() {
    this.stop();
    this.#messages = [];
    element("turns").replaceChildren();
    this.#say("");
    element("turn").focus();
  }

  #rest() {
    this.#request = null;
    enable(element("hush-button"), false, element("turn"));
  }

  #fail(error, line, content) {
    this.#say("");
    line.remove();
    if (typeof content === "string") element("turn").value = content;
    tell(element("turn"), error.message);
  }

  #say(message) {
    element("converse-status").textContent = message;
  }
}

function addLine(role, text) {
  const line = document.createElement("li");
  line.className = role;
  line.textContent = text;
  element("turns").append(line);
  return line;
}

async function base64Of(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

const takes = (task, kind) => [...task.needs, ...task.also].includes(kind);

/** Begin the panel; returns a function that shows it a model, true where that converses. */
export function conversePanel() {
  const panel = new ConversePanel();
  return ({ conversations }) => {
    panel.speaks = conversations.some((task) => task.speaks);
    const usable = conversations.filter((task) => task.speaks === panel.speaks);
    element("talk-button").hidden = !usable.some((task) => takes(task, "audio") && !task.needs.includes("text"));
    const takesText = usable.some((task) => takes(task, "text") && !task.needs.includes("audio"));
    element("send-button").hidden = !takesText;
    element("turn-field").hidden = !takesText;
    return usable.length > 0;
  };
}
