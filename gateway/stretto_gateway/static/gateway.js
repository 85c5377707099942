// Gateway client: requests with the tab's key, readable errors, and streamed responses.

const KEY = "stretto-key"; // key in sessionStorage, which is cleared when the tab is closed
const WORDS = {
  invalid_api_key: "The gateway does not know this key.",
  origin_not_allowed:
    "A gateway without keys answers only pages opened by IP address: use http://127.0.0.1 or http://localhost.",
  server_full: "The model is busy with other requests. Try again in a moment.",
  rate_limit_exceeded: "The model is busy with other requests. Try again in a moment.",
  unavailable: "The model is not ready. Try again in a moment.",
  timeout: "The model took too long. Try again.",
  server_failed: "The model failed on this. Try again, perhaps with another text.",
  no_audio: "The model generated no audio for this. Try another text.",
};

/** Return an API error as a sentence for users, without the field name, because it is shown at the field. */
function inWords({ message, code, param }) {
  if (WORDS[code] !== undefined) return WORDS[code];
  const told = param !== null && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  return `${told.charAt(0).toUpperCase()}${told.slice(1)}${/[.!?…]$/.test(told) ? "" : "."}`;
}

/** Failed request, with a readable message; `param` is the field that caused it, if any. */
export class GatewayError extends Error {
  constructor(message, { status = 0, param = null, code = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

/** Store the key for later requests; null removes it. */
export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

/** Return the response to a request; throw GatewayError for an error or if there is no response. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key === null ? {} : { authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new GatewayError("The gateway does not answer. Is it still running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** Return the response to a POST request with a JSON body. */
export function post(path, record, signal) {
  const headers = { "content-type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(record), signal });
}

async function refusal(answer) {
  const record = await answer.json().catch(() => ({}));
  const error = record.error ?? { message: `The gateway answered with status ${answer.status}.` };
  if (answer.status === 401) document.dispatchEvent(new Event("key-wanted"));
  return new GatewayError(inWords(error), { ...error, status: answer.status });
}

/** Yield the server-sent events of a response as they arrive; throw GatewayError for an error event. */
export async function* events(answer) {
  let text = "";
  try {
    for await (const part of parts(answer.body.pipeThrough(new TextDecoderStream()))) {
      const blocks = (text + part).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
        if (data === undefined || data === "[DONE]") continue;
        const event = JSON.parse(data);
        if (event.error) throw new GatewayError(inWords(event.error), event.error);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof GatewayError || error.name === "AbortError") throw error;
    throw new GatewayError("The response was interrupted.");
  }
}

async function* parts(stream) {
  const reader = stream.getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    reader.cancel().catch(() => {}); // so that the gateway stops generating
  }
}

/** Yield generated speech as it arrives: `samples` (Int16Array), `words` that begin in the following samples, or the last event as `report`. */
export async function* speech(record, signal) {
  let isWhole = false;
  const asked = { ...record, response_format: "pcm", stream_format: "sse" };
  for await (const event of events(await post("v1/audio/speech", asked, signal))) {
    if (event.type === "speech.audio.words") yield { words: event.words };
    if (event.type === "speech.audio.delta") yield { samples: samplesOf(event.audio) };
    if (event.type !== "speech.audio.done") continue;
    isWhole = true;
    yield { report: event };
  }
  if (!isWhole) throw new GatewayError("The response was interrupted.");
}

/** Return a WebSocket that is being opened; throw GatewayError if the browser cannot open it. */
export function openSocket(path, protocol) {
  const url = new URL(path, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  const key = sessionStorage.getItem(KEY);
  const protocols = key === null ? [protocol] : [protocol, `openai-insecure-api-key.${key}`];
  try {
    return new WebSocket(url, protocols);
  } catch {
    throw new GatewayError("A browser cannot open a WebSocket with this key: it has characters that no header may have.");
  }
}

/** Decode samples (Int16Array) from base64. */
export function samplesOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Int16Array(bytes.buffer);
}

/** Encode bytes (Uint8Array) as base64. */
export function base64Of(bytes) {
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}
