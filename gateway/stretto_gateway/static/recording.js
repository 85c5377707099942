// Microphone input, and wav files.

/** Return a mono wav file with the samples of Int16Arrays at `rate` Hz. */
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
  [2, 16].forEach((value, n) => head.setUint16(32 + 2 * n, value, true)); // bytes and bits per sample
  write(36, "data");
  head.setUint32(40, numBytes, true);
  return new Blob([head, ...chunks], { type: "audio/wav" });
}

/** Microphone that passes its samples to a callback, an Int16Array at a time, until it is closed. */
export class Microphone {
  /** Open the microphone at `rate` Hz (default: the device's rate); on failure throw a readable Error. */
  static async open(heard, { rate, ...constraints } = {}) {
    if (navigator.mediaDevices === undefined) {
      throw new Error("A browser lets this page use the microphone only over https or at http://localhost.");
    }
    const microphone = new Microphone();
    try {
      microphone.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...constraints } });
    } catch {
      throw new Error("There is no microphone, or this page may not use it.");
    }
    try {
      await microphone.#connect(heard, rate);
    } catch {
      await microphone.close();
      throw new Error("This browser cannot record here. Another one may.");
    }
    return microphone;
  }

  async #connect(heard, rate) {
    this.context = new AudioContext(rate === undefined ? {} : { sampleRate: rate });
    await this.context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
    const capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => heard(Int16Array.from(data, (value) => 32767 * value));
    this.context.createMediaStreamSource(this.stream).connect(capture);
  }

  get rate() {
    return this.context.sampleRate;
  }

  async close() {
    for (const track of this.stream.getTracks()) track.stop();
    await this.context?.close();
  }
}

const NOTHING = "Nothing was recorded. Is the microphone on?";

/** Make a button start a recording and, when pressed again, pass the wav file, at the device's rate, to `done`. */
export function recordWith(button, { begun, done, failed }) {
  const name = button.textContent;
  let microphone = null;
  let chunks = [];
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      if (microphone === null) {
        chunks = [];
        microphone = await Microphone.open((samples) => chunks.push(samples));
        begun();
      } else {
        const { rate } = microphone;
        await microphone.close();
        microphone = null;
        if (chunks.every((chunk) => chunk.every((sample) => sample === 0))) throw new Error(NOTHING);
        done(wavFile(chunks, rate));
      }
    } catch (error) {
      microphone = null;
      failed(error);
    }
    button.setAttribute("aria-pressed", String(microphone !== null));
    button.textContent = microphone === null ? name : "Finish";
    button.disabled = false;
    button.focus();
  });
}
