// The panel that converses: by turns, or in a call.

import { Call } from "./call.js";
import { element, enable, forgive, tell } from "./form.js";
import { base64Of, events, post, samplesOf } from "./gateway.js";
import { Playback } from "./player.js";
import { recordWith } from "./recording.js";

class ConversePanel {
  #messages = []; // as the API takes them
  #request = null; // an AbortController while one is under way
  #playback = null;
  #call = null;
  speaks = true; // whether replies are spoken
  transcribes = false; // whether what the user says can be written down

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
    element("converse").addEventListener("keydown", (event) => {
      if (event.key === "Escape") (this.#call?.hangUp(), this.stop());
    });
    element("call-button").addEventListener("click", () => (this.#call === null ? this.#begin() : this.#call.hangUp()));
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
    const data = base64Of(new Uint8Array(await file.arrayBuffer()));
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

  /** Call: a conversation of its own, in which nothing is written. */
  #begin() {
    this.#forget();
    forgive(element("converse"));
    try {
      this.#call = new Call({
        transcribes: this.transcribes,
        addLine,
        say: (message) => this.#say(message),
        over: (error) => this.#hungUp(error),
      });
    } catch (error) {
      return tell(element("call-button"), error.message);
    }
    this.#showCall("Hang up");
  }

  #hungUp(error) {
    this.#call = null;
    this.#say(error === null ? "The call is over." : "");
    this.#showCall("Call");
    if (error !== null) tell(element("call-button"), error.message);
  }

  #showCall(name) {
    const button = element("call-button");
    button.textContent = name;
    button.setAttribute("aria-pressed", String(this.#call !== null));
    button.focus();
    for (const id of ["turn", "talk-button", "send-button", "forget-button"]) element(id).disabled = this.#call !== null;
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

const takes = (task, kind) => [...task.needs, ...task.also].includes(kind);

/** Begin the panel; returns a function that shows it a model, true where that converses. */
export function conversePanel() {
  const panel = new ConversePanel();
  return ({ conversations, tasks }) => {
    panel.transcribes = tasks.includes("asr");
    panel.speaks = conversations.some((task) => task.speaks);
    const usable = conversations.filter((task) => task.speaks === panel.speaks);
    const hears = usable.some((task) => takes(task, "audio") && !task.needs.includes("text"));
    element("talk-button").hidden = !hears;
    element("call-button").hidden = !(hears && panel.speaks);
    const takesText = usable.some((task) => takes(task, "text") && !task.needs.includes("audio"));
    element("send-button").hidden = !takesText;
    element("turn-field").hidden = !takesText;
    return usable.length > 0;
  };
}
