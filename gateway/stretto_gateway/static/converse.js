// Conversation panel, with typed or recorded turns, or a call.

import { Call } from "./call.js";
import { element, forgive, show, tell } from "./form.js";
import { base64Of, events, post, samplesOf } from "./gateway.js";
import { Playback } from "./player.js";
import { recordWith } from "./recording.js";

// Fields of the page for fields of a session, which begin the gateway's error messages.
const FIELDS = { "session.instructions": "role", "session.audio.output.voice": "call-voice" };

class ConversePanel {
  #messages = []; // in the API's format
  #request = null; // AbortController of the request in progress
  #playback = null;
  #call = null;
  speaks = true; // true if replies are spoken
  usesTracks = false; // true if calls use WebRTC
  transcribes = false; // true if the user's speech can be transcribed
  takesText = true;
  hears = false;
  isDuplex = false; // true if the model speaks while it listens, so that there are only calls
  takesRole = false; // true if a duplex model accepts a role
  #isAsked = false; // true after asking whether a call may clear the conversation

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
      begun: () => (this.stop(), forgive(element("converse")), this.#say("Recording…")),
      done: (file) => this.#sendSound(file),
      failed: (error) => tell(element("turn"), error.message),
    });
  }

  #sendText() {
    const text = element("turn").value.trim();
    if (text === "") return tell(element("turn"), "Write something to send.");
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
    this.arrange();
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
        if (delta.audio?.data) {
          if (playback.numSamples === 0) this.#followSound(playback);
          playback.add(samplesOf(delta.audio.data));
        }
        if (text.trim() !== "") line.textContent = text.trim();
        if (reason) isWhole = true;
      }
      if (!isWhole) throw new Error("The response was interrupted.");
    } catch (error) {
      if (text.trim() === "") line.remove();
      throw error;
    }
    if (text.trim() === "") line.textContent = "(spoken)";
    return text.trim();
  }

  /** Show when the first sound of a reply is played, or that there is no sound device. */
  #followSound(playback) {
    if (this.#playback !== playback || playback.isOver) return;
    if (playback.isMute) return this.#say("This browser has no sound device.");
    if (playback.numPlayed > 0) return this.#say("Speaking…");
    requestAnimationFrame(() => this.#followSound(playback));
  }

  /** Stop the reply; the conversation so far is kept. */
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
    this.#rest();
    this.#say("");
    element("turn").focus();
  }

  /** Start a call, a separate conversation without text input; ask before the current conversation is cleared. */
  #begin() {
    if (element("turns").childElementCount > 0 && !this.#isAsked) {
      this.stop();
      this.#isAsked = true;
      this.arrange();
      this.#say("A call clears this conversation.");
      return element("call-button").focus();
    }
    this.#forget();
    forgive(element("converse"));
    try {
      this.#call = new Call({
        usesTracks: this.usesTracks,
        transcribes: this.transcribes,
        isDuplex: this.isDuplex,
        persona: this.takesRole ? { role: element("role").value.trim(), voice: element("call-voice").value } : null,
        addLine,
        say: (message) => this.#say(message),
        over: (error) => this.#hungUp(error),
      });
    } catch (error) {
      return tell(element("call-button"), error.message);
    }
    this.arrange();
    element("call-button").focus();
  }

  #hungUp(error) {
    this.#call = null;
    this.#say(error === null ? "The call is over." : "");
    this.arrange();
    element("call-button").focus();
    if (error === null) return;
    const field = Object.keys(FIELDS).find((name) => error.message.startsWith(name));
    tell(element(FIELDS[field] ?? "call-button"), error.message);
  }

  /** Show the buttons that apply to the current state. */
  arrange() {
    const [isCalling, isReplying] = [this.#call !== null, this.#request !== null];
    const call = element("call-button");
    const next = this.takesText ? element("turn") : this.isDuplex ? call : element("talk-button");
    call.textContent = isCalling ? "Hang up" : this.#isAsked ? "Clear it and call" : this.isDuplex ? "Talk with it" : "Call";
    call.setAttribute("aria-pressed", String(isCalling));
    element("turn").disabled = isCalling;
    for (const name of ["role", "call-voice"]) element(name).disabled = isCalling;
    show(element("talk-button"), this.hears && !this.isDuplex && !isCalling && !isReplying, next);
    show(call, isCalling || (this.hears && this.speaks && !isReplying), next);
    show(element("send-button"), this.takesText && !isCalling && !isReplying, next);
    show(element("forget-button"), element("turns").childElementCount > 0 && !isCalling && !isReplying, next);
    show(element("hush-button"), isReplying, next);
  }

  #rest() {
    this.#request = null;
    this.#isAsked = false;
    this.arrange();
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

/** Set up the panel; return a function that adapts it to a model, and returns true if the model can converse. Its second argument is true if the gateway has calls over WebRTC. */
export function conversePanel() {
  const panel = new ConversePanel();
  return ({ conversations, tasks, voices, takes_role: takesRole }, hasCalls) => {
    panel.usesTracks = hasCalls && window.RTCPeerConnection !== undefined;
    panel.transcribes = tasks.includes("asr");
    panel.isDuplex = tasks.includes("duplex");
    panel.takesRole = takesRole;
    element("persona").hidden = !takesRole;
    element("call-voice-field").hidden = voices.length === 0;
    element("call-voice").replaceChildren(...voices.map(({ id, name }) => new Option(name, id)));
    panel.speaks = panel.isDuplex || conversations.some((task) => task.speaks);
    const usable = conversations.filter((task) => task.speaks === panel.speaks);
    panel.hears = panel.isDuplex || usable.some((task) => takes(task, "audio") && !task.needs.includes("text"));
    panel.takesText = usable.some((task) => takes(task, "text") && !task.needs.includes("audio"));
    element("turn-field").hidden = !panel.takesText;
    panel.arrange();
    return panel.isDuplex || usable.length > 0;
  };
}
