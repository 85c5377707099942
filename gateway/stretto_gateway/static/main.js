// Page: shows the panels that the model supports.

import { comparePanel } from "./compare.js";
import { conversePanel } from "./converse.js";
import { element, forgive, tell } from "./form.js";
import { ask, keepKey } from "./gateway.js";
import { speakPanel } from "./speak.js";
import { transcribePanel } from "./transcribe.js";
import { voicesPanel } from "./voices.js";

const NAMES = ["speak", "voices", "transcribe", "converse"];
const DOES = { speak: "speaks", voices: "speaks in recorded voices", transcribe: "transcribes", converse: "converses" };
const showSpeech = speakPanel();
const showConversation = conversePanel();
const showVoices = voicesPanel({ changed: listVoices, use: speakIn });
comparePanel();
transcribePanel();

async function show() {
  const { data, calls } = await (await ask("v1/models")).json();
  const tasks = data.flatMap((each) => each.tasks);
  const model = // in the order in which the gateway chooses
    data.find((each) => each.conversations.length > 0) ?? data.find((each) => each.tasks.includes("duplex")) ?? data[0];
  element("model").textContent = data.map(({ id, sample_rate }) => `${id} · ${sample_rate / 1000} kHz`).join(", ");
  const speaks = tasks.includes("tts");
  const can = {
    speak: speaks,
    voices: (await listVoices()) && speaks,
    transcribe: tasks.includes("asr"),
    converse: showConversation(model, calls),
  };
  const names = NAMES.filter((name) => can[name]);
  const does = new Intl.ListFormat("en").format(names.map((name) => DOES[name]));
  element("does").textContent = `This model only ${does}.`;
  element("does").hidden = names.length === 0 || names.length === NAMES.length;
  for (const name of NAMES) element(`${name}-tab`).hidden = !can[name];
  element("tabs").hidden = names.length < 2;
  element("key-form").hidden = true;
  if (names.length > 0) open(names[0]);
}

/** Show the available voices; return true if voices can be added. */
async function listVoices() {
  const found = await (await ask("v1/audio/voices")).json();
  showSpeech(found);
  return showVoices(found);
}

function speakIn(voice) {
  element("voice").value = voice;
  element("voice").dispatchEvent(new Event("change"));
  open("speak");
  element("text").focus();
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
    tell(element("key"), "A key has only letters, digits and signs of ASCII.");
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
  element("model").textContent = "This gateway requires a key.";
});

element("base-url").textContent = new URL("v1", document.baseURI);
show().catch((error) => {
  if (error.status !== 401) element("model").textContent = error.message;
});
