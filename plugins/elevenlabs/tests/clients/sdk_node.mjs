// The calls of ElevenLabs' own package for Node, as its documentation shows them.
// node sdk_node.mjs URL RECORDING FOLDER PACKAGES
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [url, , folder, packages] = process.argv.slice(2);
const require = createRequire(path.join(packages, "package.json"));
const { ElevenLabsClient } = require("@elevenlabs/elevenlabs-js");
const TEXT = "It is twenty past nine and the garden door is open.";
const VOICE = "JBFqnCBsd6RMkjVDRZzb";
const client = new ElevenLabsClient({ baseUrl: url, apiKey: "unused" });

// A step that throws is reported as an error, and the next one follows.
const attempt = async (step, run) => {
  try {
    await run();
  } catch (error) {
    console.error(error);
    report(step, { error: String(error) });
  }
};
const report = (step, result) => console.log(JSON.stringify({ step, ...result }));
const reportAudio = (step, parts, suffix) => {
  const file = path.join(folder, `${step}.${suffix}`);
  fs.writeFileSync(file, Buffer.concat(parts));
  report(step, { audio: file });
};
const all = async (stream) => {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
};

await attempt("convert", async () => {
  const request = { text: TEXT, modelId: "eleven_multilingual_v2", outputFormat: "mp3_44100_128" };
  reportAudio("convert", await all(await client.textToSpeech.convert(VOICE, request)), "mp3");
});
await attempt("stream", async () => {
  const voiceSettings = { stability: 0.3, similarityBoost: 0.8, speed: 1.1 };
  const request = { text: TEXT, outputFormat: "pcm_24000", seed: 1, languageCode: "en", voiceSettings };
  reportAudio("stream", await all(await client.textToSpeech.stream(VOICE, request)), "pcm");
});
await attempt("convertWithTimestamps", async () => {
  const timed = await client.textToSpeech.convertWithTimestamps(VOICE, { text: TEXT });
  reportAudio("convertWithTimestamps", [Buffer.from(timed.audioBase64, "base64")], "mp3");
  report("characters", { value: timed.alignment.characters.join("") === TEXT });
});
await attempt("streamWithTimestamps", async () => {
  const request = { text: TEXT, outputFormat: "pcm_24000" };
  const chunks = await all(await client.textToSpeech.streamWithTimestamps(VOICE, request));
  const parts = chunks.map((chunk) => Buffer.from(chunk.audioBase64, "base64"));
  reportAudio("streamWithTimestamps", parts, "pcm");
  const letters = chunks.flatMap((chunk) => chunk.alignment?.characters ?? []);
  report("streamed characters", { value: letters.join("") === TEXT });
});
await attempt("voices", async () => {
  const { voices } = await client.voices.getAll();
  const found = await client.voices.search({ pageSize: 1, search: voices[0].name });
  const one = await client.voices.get(voices[0].voiceId);
  report("voices", { value: found.voices[0].voiceId === voices[0].voiceId && one.name === voices[0].name });
});
await attempt("models", async () => {
  report("models", { value: (await client.models.list()).map((model) => model.modelId) });
});
await attempt("unknown voice", async () => {
  const failure = await client.textToSpeech.convert("nobody", { text: TEXT }).catch((error) => error);
  report("unknown voice", { value: failure.statusCode === 404 && failure.body.detail.status === "voice_not_found" });
});
