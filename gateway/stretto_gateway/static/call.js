// Voice conversation over the realtime WebSocket, or over WebRTC where the gateway has it. The gateway detects the ends of turns, or a duplex model takes turns itself.

import { GatewayError, base64Of, openSocket, samplesOf } from "./gateway.js";
import { Playback, RATE } from "./player.js";
import { Microphone } from "./recording.js";
import { Tracks } from "./tracks.js";

const PIECE = RATE / 25; // samples per message: 40 ms
const LAG_EVERY = RATE; // samples of a duplex model's speech between two reports of its lag: 1 s
const BROKEN = "The call was interrupted.";
const REFUSED = "The gateway did not accept the call. Is it running, and does it have a free slot?";

/**
 * Call, from its creation until `hangUp` or until the gateway ends it.
 *
 * usesTracks: true to call over WebRTC. isDuplex: true if the model speaks while it listens. persona: its role and voice, or null. addLine(role, text): adds a line to the log. say(text): shows the status. over(error or null): called at the end.
 */
export class Call {
  #socket; // WebSocket, or data channel
  #tracks = null; // audio of a call over WebRTC
  #microphone = null;
  #kept = []; // Int16Array each: unsent samples, fewer than one message
  #playback = null;
  #lines = new Map(); // by item id
  #itemId = null; // id of the reply's item
  #error = null;
  #numSent = 0; // samples
  #numTold = -LAG_EVERY; // samples of speech at the last report of the lag
  #handlers = {
    "session.created": () => this.#configure(),
    "session.updated": () => this.#listen(),
    "input_audio_buffer.speech_started": () => this.#giveWay(),
    "input_audio_buffer.speech_stopped": () => this.say("Thinking…"),
    "input_audio_buffer.committed": ({ item_id: id }) => this.#lines.set(id, this.addLine("user", "(spoken)")),
    "conversation.item.input_audio_transcription.completed": ({ item_id: id, transcript }) => {
      if (transcript !== "" && this.#lines.has(id)) this.#lines.get(id).textContent = transcript;
    },
    "response.created": () => {
      if (this.#tracks === null) this.#playback = new Playback({ keeps: false });
      this.#itemId = null;
    },
    "output_audio_buffer.started": () => this.say(this.isDuplex ? "Talking." : "Speaking…"),
    "output_audio_buffer.stopped": () => this.say("Listening: speak."),
    "response.output_item.added": ({ item }) => {
      this.#itemId = item.id;
      this.#lines.set(item.id, this.addLine("assistant", "(spoken)"));
    },
    "response.output_audio.delta": ({ delta }) => {
      if (this.#playback.numSamples === 0) this.#followSound(this.#playback);
      this.#playback.add(samplesOf(delta));
      if (this.isDuplex) this.#tellLag(this.#playback.numSamples);
    },
    "response.output_audio_transcript.delta": ({ item_id: id, delta }) => {
      const line = this.#lines.get(id);
      if (this.isDuplex) line.textContent = line.textContent === "(spoken)" ? delta.trimStart() : line.textContent + delta;
    },
    "response.output_audio_transcript.done": ({ item_id: id, transcript }) => {
      if (transcript.trim() !== "") this.#lines.get(id).textContent = transcript.trim();
    },
    "response.done": ({ response }) => this.#endReply(response),
    error: ({ error }) => this.#fail(new GatewayError(error.message, error)),
  };

  constructor({ usesTracks, transcribes, isDuplex, persona, addLine, say, over }) {
    Object.assign(this, { transcribes, isDuplex, persona, addLine, say, over });
    if (usesTracks) this.#tracks = new Tracks((error) => this.#end(error ?? new GatewayError(BROKEN)));
    this.#socket = this.#tracks?.channel ?? openSocket("v1/realtime", "realtime");
    this.#socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      this.#handlers[event.type]?.(event);
    };
    this.#socket.onclose = () => this.#end(this.#error ?? new GatewayError(this.#microphone ? BROKEN : REFUSED));
    say("Calling…");
  }

  hangUp() {
    this.#end(null);
  }

  #configure() {
    const input = this.transcribes ? { transcription: {} } : {};
    const { role, voice } = this.persona ?? { role: "", voice: "" };
    const session = { type: "realtime", audio: { input, ...(voice && { output: { voice } }) }, ...(role && { instructions: role }) };
    this.#send({ type: "session.update", session });
  }

  async #listen() {
    try {
      if (this.#tracks !== null) await this.#tracks.listen();
      const microphone = this.#tracks ?? (await Microphone.open((samples) => this.#hear(samples), { rate: RATE, echoCancellation: true }));
      if (this.#socket === null) return await microphone.close(); // hung up in the meantime
      this.#microphone = microphone;
      this.say("Listening: speak.");
    } catch (error) {
      this.#end(error);
    }
  }

  #hear(samples) {
    this.#kept.push(samples);
    const numKept = this.#kept.reduce((sum, each) => sum + each.length, 0);
    if (numKept < PIECE || this.#socket === null) return;
    const bytes = this.#kept.flatMap(({ buffer }) => [...new Uint8Array(buffer)]);
    this.#kept = [];
    this.#numSent += numKept;
    this.#send({ type: "input_audio_buffer.append", audio: base64Of(bytes) });
  }

  /** Stop playback because the user speaks, and report how much of the reply was played; the rest is deleted. */
  #giveWay() {
    this.say("Listening…");
    const playback = this.#playback;
    if (playback === null || playback.isOver) return;
    const heardMs = Math.floor((1000 * playback.numPlayed) / RATE);
    playback.stop();
    if (this.#itemId === null || playback.numSamples === 0) return;
    const place = { item_id: this.#itemId, content_index: 0 };
    this.#send({ type: "conversation.item.truncate", audio_end_ms: heardMs, ...place });
  }

  /** Once a second, show how far the model's speech lags behind the samples sent to it. */
  #tellLag(numSamples) {
    if (numSamples < this.#numTold + LAG_EVERY) return;
    this.#numTold = numSamples;
    const lagS = Math.max(0, this.#numSent - numSamples) / RATE;
    this.say(`Talking: ${lagS.toFixed(2)} s behind.`);
  }

  #followSound(playback) {
    if (this.#playback !== playback || playback.isOver) return;
    if (playback.isMute) return this.say("This browser has no sound device.");
    if (this.isDuplex) return; // the lag is shown
    if (playback.numPlayed > 0) return this.say("Speaking…");
    requestAnimationFrame(() => this.#followSound(playback));
  }

  async #endReply({ status, status_details: details }) {
    const playback = this.#playback;
    playback?.end();
    if (this.isDuplex) return this.#end(status === "failed" ? new GatewayError(details.error.message) : null);
    if (status === "failed") return this.say(details.error.message);
    if (playback === null) return; // the gateway reports the end of playback
    await playback.finished;
    if (playback === this.#playback && status === "completed" && this.#socket !== null) this.say("Listening: speak.");
  }

  #fail(error) {
    this.#error = error;
    if (this.#microphone === null) this.#end(error);
    else this.say(error.message);
  }

  #send(event) {
    if ([WebSocket.OPEN, "open"].includes(this.#socket.readyState)) this.#socket.send(JSON.stringify(event));
  }

  #end(error) {
    if (this.#socket === null) return;
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
    this.#socket = null;
    this.#playback?.stop();
    this.#tracks?.close();
    this.#microphone?.close();
    this.over(error);
  }
}
