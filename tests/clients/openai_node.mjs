// The calls of OpenAI's own package for Node, as its documentation shows them.
// node openai_node.mjs URL RECORDING FOLDER PACKAGES
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [url, recording, folder, packages] = process.argv.slice(2);
const require = createRequire(path.join(packages, "package.json"));
const { OpenAI } = require("openai");
const TEXT = "It is twenty past nine and the garden door is open.";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0, timeout: 300_000 });

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
const reportAudio = (step, data, suffix) => {
  const file = path.join(folder, `${step.replaceAll(" ", "_")}.${suffix}`);
  fs.writeFileSync(file, data);
  report(step, { audio: file });
};

for (const format of ["mp3", "opus", "aac", "flac", "wav", "pcm"]) {
  await attempt(`speech ${format}`, async () => {
    const answer = await client.audio.speech.create({
      model: "gpt-4o-mini-tts",
      voice: "coral",
      input: TEXT,
      instructions: "Speak in a cheerful and positive tone.",
      response_format: format,
    });
    reportAudio(`speech ${format}`, Buffer.from(await answer.arrayBuffer()), format);
  });
}

const streamed = { model: "gpt-4o-mini-tts", voice: "alloy", response_format: "pcm" };
await attempt("speech by events", async () => {
  const answer = await client.audio.speech.create({ ...streamed, input: TEXT, stream_format: "sse" });
  const lines = (await answer.text()).split("\n").filter((line) => line.startsWith("data: {"));
  const events = lines.map((line) => JSON.parse(line.slice(6)));
  const parts = events.filter((event) => event.type === "speech.audio.delta");
  reportAudio("speech by events", Buffer.concat(parts.map((part) => Buffer.from(part.audio, "base64"))), "pcm");
});

await attempt("aborted after the first part", async () => {
  const control = new AbortController();
  const input = `${TEXT} `.repeat(20);
  const answer = await client.audio.speech.create({ ...streamed, input }, { signal: control.signal });
  const first = await answer.body.getReader().read();
  control.abort();
  report("aborted after the first part", { value: first.value.length > 0 });
});

const file = () => fs.createReadStream(recording);
for (const model of ["gpt-transcribe", "whisper-1"]) {
  await attempt(`transcription ${model}`, async () => {
    const answer = await client.audio.transcriptions.create({ file: file(), model });
    report(`transcription ${model}`, { text: answer.text });
  });
}
for (const format of ["text", "srt", "vtt"]) {
  await attempt(`transcription ${format}`, async () => {
    const known = { file: file(), model: "whisper-1", response_format: format };
    report(`transcription ${format}`, { text: String(await client.audio.transcriptions.create(known)) });
  });
}
await attempt("transcription by events", async () => {
  const known = { file: file(), model: "gpt-4o-mini-transcribe", stream: true, chunking_strategy: "auto" };
  let last = null;
  for await (const event of await client.audio.transcriptions.create(known)) last = event;
  report("transcription by events", { text: last.text });
});
