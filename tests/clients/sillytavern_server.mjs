// SillyTavern's server, asked as its page asks: the request of its extension "OpenAI Compatible" with its defaults, and
// with the speed slider moved.
// node sillytavern_server.mjs URL RECORDING FOLDER PACKAGES
import { spawn } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";

const [url, , folder, packages] = process.argv.slice(2);
const TEXT = "It is twenty past nine and the garden door is open.";
const report = (step, result) => console.log(JSON.stringify({ step, ...result }));

const free = net.createServer().listen(0, "127.0.0.1");
await new Promise((resolve) => free.once("listening", resolve));
const { port } = free.address();
await new Promise((resolve) => free.close(resolve));

const home = path.join(packages, "node_modules", "sillytavern");
const log = fs.openSync(path.join(folder, "sillytavern.log"), "w");
const options = ["--dataRoot", path.join(folder, "data"), "--configPath", path.join(folder, "config.yaml")];
options.push("--port", String(port), "--browserLaunchEnabled", "false", "--disableCsrf", "true", "--listen", "false");
const server = spawn(process.execPath, ["server.js", ...options], { cwd: home, stdio: ["ignore", log, log] });
let ended = false;
server.once("exit", () => (ended = true));

try {
  const page = `http://127.0.0.1:${port}`;
  while (!ended && !(await fetch(page).catch(() => null))) await new Promise((resolve) => setTimeout(resolve, 200));
  // The settings that public/scripts/extensions/tts/openai-compatible.js begins with, but for the endpoint.
  const settings = { provider_endpoint: `${url}/v1/audio/speech`, model: "tts-1", response_format: "mp3" };
  for (const [step, voice, speed] of [["speech", "alloy", 1], ["speech at 1.5", "nova", 1.5], ["speech at 0.5", "onyx", 0.5]]) {
    const body = JSON.stringify({ ...settings, input: TEXT, voice, speed });
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(`${page}/api/openai/custom/generate-voice`, { method: "POST", headers, body });
    if (answer.ok) {
      const file = path.join(folder, `${step.replaceAll(" ", "_")}.mp3`);
      fs.writeFileSync(file, Buffer.from(await answer.arrayBuffer()));
      report(step, { audio: file });
    } else report(step, { error: await answer.text() });
  }
} finally {
  server.kill();
}
