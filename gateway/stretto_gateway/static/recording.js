// The microphone, and wav files of samples.

/** A wav file of Int16Arrays, mono at `rate` Hz. */
export function wavFile(chunks, rate) {
  const numBytes = 2 * chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const write = (offset, text) => [...text].forEach((letter, n) => head.setUint8(offset + n, letter.charCodeAt(0)));
  write(0, "RIFF");
  head.setUint32(4, 36 + numBytes, true);
  write(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  [1, 1].forEach((value, n) => head.setUint16(20 + 2 * n, value, true)); // PCM, one channel
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  [2, 16].forEach((value, n) => head.setUint16(32 + 2 * n, value, true)); // bytes and bits of a sample
  write(36, "data");
  head.setUint32(40, numBytes, true);
  return new Blob([head, ...chunks], { type: "audio/wav" });
}

/** Records from now on; `finish` gives the wav file, at the device's own rate. */
export class Recording {
  #chunks = [];

  /** A recording that has begun; Error, in words, where there is no microphone to be had. */
  static async begin() {
    if (navigator.mediaDevices === undefined) {
      throw new Error("The browser gives no microphone to a page without TLS, but at http://localhost.");
    }
    const recording = new Recording();
    try {
      recording.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    } catch {
      throw new Error("No microphone: there is none, or this page may not use it.");
    }
    recording.context = new AudioContext();
    await recording.context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
    const capture = new AudioWorkletNode(recording.context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => recording.#chunks.push(Int16Array.from(data, (value) => 32767 * value));
    recording.context.createMediaStreamSource(recording.stream).connect(capture);
    return recording;
  }

  async finish() {
    for (const track of this.stream.getTracks()) track.stop();
    const rate = this.context.sampleRate;
    await this.context.close();
    return wavFile(this.#chunks, rate);
  }
}

/** A button that begins a recording and, pressed again, hands the file on. */
export function recordWith(button, { begun, done, failed }) {
  const name = button.textContent;
  let recording = null;
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      if (recording === null) {
        recording = await Recording.begin();
        begun();
      } else {
        const file = await recording.finish();
        recording = null;
        done(file);
      }
    } catch (error) {
      recording = null;
      failed(error);
    }
    button.setAttribute("aria-pressed", String(recording !== null));
    button.textContent = recording === null ? name : "Finish";
    button.disabled = false;
    button.focus();
  });
}
