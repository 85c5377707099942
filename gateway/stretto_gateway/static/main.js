// The page: what the model can do is shown, and what it cannot is not.

import { conversePanel } from "./converse.js";
import { element, forgive, tell } from "./form.js";
import { ask, keepKey } from "./gateway.js";
import { speakPanel } from "./speak.js";
import { transcribePanel } from "./transcribe.js";

const NAMES = ["speak", "transcribe", "converse"];
const showSpeech = speakPanel();
const showConversation = conversePanel();
transcribePanel();

async function show() {
  const { data } = await (await ask("v1/models")).json();
  const { voices } = await (await ask("v1/audio/voices")).json();
  const [model] = data;
  element("model").textContent = `${model.id} · ${model.sample_rate / 1000} kHz`;
  showSpeech({ voices });
  const can = {
    speak: model.tasks.includes("tts"),
    transcribe: model.tasks.includes("asr"),
    converse: showConversation(model),
  };
  const names = NAMES.filter((name) => can[name]);
  for (const name of NAMES) element(`${name}-tab`).hidden = !can[name];
  element("tabs").hidden = names.length < 2;
  element("key-form").hidden = true;
  if (names.length > 0) open(names[0]);
}

function open(name) {
  for (const each of NAMES) {
    element(each).hidden = each !== name;
    element(`${each}-tab`).setAttribute("aria-selected", String(each === name));
    element(`${each}-tab`).tabIndex = each === name ? 0 : -1;
  }
}

for (const name of NAMES) element(`${name}-tab`).addEventListener("click", () => open(name));

element("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step === undefined) return;
  const tabs = [...element("tabs").querySelectorAll("[role=tab]:not([hidden])")];
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
});

element("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  forgive(element("key-form"));
  const key = element("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    tell(element("key"), "A key has letters, digits and signs of ASCII alone.");
    return;
  }
  keepKey(key);
  try {
    await show();
    element("key").value = "";
  } catch (error) {
    keepKey(null);
    tell(element("key"), error.message);
  }
});

document.addEventListener("key-wanted", () => {
  element("key-form").hidden = false;
  element("model").textContent = "This gateway wants a key.";
});

element("base-url").textContent = new URL("v1", document.baseURI);
show().catch((error) => {
  if (error.status !== 401) element("model").textContent = error.message;
});
