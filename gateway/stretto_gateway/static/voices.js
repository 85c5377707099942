// Panel for recorded voices.

import { element, forgive, tell } from "./form.js";
import { ask } from "./gateway.js";
import { recordWith } from "./recording.js";

// Page fields, keyed by API field.
const FIELDS = { audio_sample: "sample", ref_text: "said", name: "voice-name", consent: "consent" };

class VoicesPanel {
  #recording = null; // File recorded in the page, if any

  constructor(changed, use) {
    Object.assign(this, { changed, use });
    element("voices").querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep();
    });
    element("sample").addEventListener("change", () => (this.#recording = null));
    recordWith(element("sample-record"), {
      begun: () => (forgive(element("voices")), this.#say("Recording…")),
      done: (file) => {
        this.#recording = new File([file], "recording.wav");
        element("sample").value = "";
        this.#say("Recorded.");
      },
      failed: (error) => tell(element("sample"), error.message),
    });
  }

  async keep() {
    forgive(element("voices"));
    const body = this.#form();
    if (body === null) return;
    element("keep-button").disabled = true;
    this.#say("The model listens to it…");
    try {
      const { name } = await (await ask("v1/audio/voices", { method: "POST", body })).json();
      this.#recording = null;
      element("voices").querySelector("form").reset();
      await this.changed();
      this.#say(`${name} is stored.`);
    } catch (error) {
      this.#say("");
      tell(element(FIELDS[error.param] ?? "sample"), error.message);
    }
    element("keep-button").disabled = false;
  }

  /** Return the form data, or null if a field is invalid. */
  #form() {
    const file = this.#recording ?? element("sample").files[0];
    const [name, consent] = ["voice-name", "consent"].map((id) => element(id).value.trim());
    if (file === undefined) tell(element("sample"), "Choose a file, or record yourself.");
    else if (name === "") tell(element("voice-name"), "Give the voice a name.");
    else if (consent === "") tell(element("consent"), "State how the speaker has agreed, for example “my own voice”.");
    else {
      const body = new FormData();
      const said = element("said-field").hidden ? "" : element("said").value.trim();
      const fields = { name, consent, ref_text: said, audio_sample: file };
      for (const [field, value] of Object.entries(fields)) body.append(field, value);
      return body;
    }
    return null;
  }

  show(voices) {
    element("kept").replaceChildren(...voices.map((voice) => this.#line(voice)));
    element("kept").hidden = voices.length === 0;
  }

  #line({ id, name, consent }) {
    const line = document.createElement("li");
    const [title, note] = [document.createElement("strong"), document.createElement("span")];
    [title.textContent, note.textContent, note.className] = [name, consent, "hint"];
    const speak = button("Speak", `Speak in the voice ${name}`);
    speak.addEventListener("click", () => this.use(id));
    const forget = button("Delete", `Delete the voice ${name}`);
    forget.addEventListener("click", () => {
      if (forget.textContent === "Really?") return this.#forget(id, name);
      forget.textContent = "Really?";
      forget.ariaLabel = `Really delete the voice ${name}?`;
    });
    line.append(title, note, speak, forget);
    return line;
  }

  async #forget(id, name) {
    try {
      await ask(`v1/audio/voices/${id}`, { method: "DELETE" });
      await this.changed();
      this.#say(`${name} is deleted.`);
      element("sample").focus(); // the focused button has been removed
    } catch (error) {
      tell(element("sample"), error.message);
    }
  }

  #say(message) {
    element("voices-status").textContent = message;
  }
}

function button(text, name) {
  const made = document.createElement("button");
  [made.type, made.textContent, made.ariaLabel] = ["button", text, name];
  return made;
}

/**
 * Set up the panel; return a function that lists the voices and returns true if voices can be added.
 * changed: called when voices were added or removed. use(id): selects a voice for speech.
 */
export function voicesPanel({ changed, use }) {
  const panel = new VoicesPanel(changed, use);
  return ({ form, data }) => {
    element("said-field").hidden = !form.includes("ref_text");
    panel.show(data);
    return form.length > 0;
  };
}
