// Playback of samples while they are still being generated.

export const RATE = 24000; // Hz, as the gateway sends pcm
const LEAD_S = 0.03; // from scheduling a buffer to its first sample; if shorter, the audio thread may be too late
const LATE_S = 0.02; // delay within which the audio thread starts a buffer that was scheduled too late
const SCHEDULED_S = 10; // maximum audio in the audio graph; the rest waits as 16-bit samples
const FADE_S = 0.005; // time constant of the fade-out, which avoids a click
const NO_DEVICE_MS = 3000; // if the audio clock has not advanced by then, there is no device
const IDLE_MS = 2000; // idle time after which the audio device is released

let context = null; // the page's AudioContext, which may only be created after a click
let last = null; // latest playback; there is only one at a time
let numPlaying = 0;
let idleTimer = 0;

function wake() {
  clearTimeout(idleTimer);
  numPlaying += 1;
  context ??= new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
  return context.resume();
}

function rest() {
  numPlaying -= 1;
  if (numPlaying === 0) idleTimer = setTimeout(() => context.suspend(), IDLE_MS);
}

/** Playback of one utterance: `add` samples as they arrive, then `end` or `stop`; `finished` resolves at the end. */
export class Playback {
  chunks = []; // all samples, Int16Array each, if they are kept
  numSamples = 0;
  firstSoundMs = null; // time at which the first sample leaves the device, by performance.now()
  waitedS = 0; // time without samples to play
  #waiting = []; // chunks that have not been scheduled
  #numScheduled = 0; // number of scheduled samples
  #runs = []; // latest runs of samples without a gap: first frame of the context, first sample
  #end = 0; // frame after the last scheduled one
  #sources = new Set();
  #isComplete = false;
  #isOver = false;
  #isWatched = false; // true once the check for an audio device has begun
  isMute = false; // true if there is no audio device

  /** Args: `keeps`, true to keep all samples in `chunks` instead of dropping those that were played. */
  constructor({ keeps = true } = {}) {
    this.keeps = keeps;
    last?.stop();
    last = this;
    this.finished = new Promise((resolve) => (this.resolve = resolve));
    wake().then(() => this.#pump());
    this.gain = new GainNode(context);
    this.gain.connect(context.destination);
  }

  /** Append samples. */
  add(samples) {
    if (this.keeps) this.chunks.push(samples);
    if (this.keeps || !this.isMute) this.#waiting.push(samples);
    this.numSamples += samples.length;
    this.#watch();
    this.#pump();
  }

  /** Check whether there is an audio device, whose clock then advances. */
  #watch() {
    if (this.#isWatched) return;
    this.#isWatched = true;
    const begun = context.currentTime;
    setTimeout(() => {
      this.isMute = !this.#isOver && context.currentTime === begun;
      if (this.isMute && !this.keeps) this.#waiting = [];
      this.#pump();
    }, NO_DEVICE_MS);
  }

  /** Mark the utterance as complete. */
  end() {
    this.#isComplete = true;
    this.#pump();
  }

  /** Stop immediately. */
  stop() {
    if (this.#isOver) return;
    this.gain.gain.setTargetAtTime(0, context.currentTime, FADE_S);
    for (const source of this.#sources) source.stop(context.currentTime + 5 * FADE_S);
    this.#leave();
  }

  get isOver() {
    return this.#isOver;
  }

  /** Number of samples played so far. */
  get numPlayed() {
    const frame = context.currentTime * RATE;
    const run = this.#runs.findLast((each) => each.frame <= frame);
    if (run === undefined) return 0;
    const next = this.#runs[this.#runs.indexOf(run) + 1];
    const limit = next === undefined ? this.#end - run.frame : next.sample - run.sample;
    return run.sample + Math.min(frame - run.frame, limit);
  }

  /** Duration in seconds of received samples that have not been played. */
  get aheadS() {
    return (this.numSamples - this.numPlayed) / RATE;
  }

  #pump() {
    if (this.#isOver) return;
    if (this.isMute && this.#isComplete) return this.#leave();
    if (context.state !== "running") return;
    const now = context.currentTime * RATE;
    while (this.#waiting.length > 0 && this.#end - now < SCHEDULED_S * RATE) this.#schedule();
    if (this.#isComplete && this.#sources.size === 0 && this.#waiting.length === 0) this.#leave();
  }

  #schedule() {
    const samples = this.#waiting.shift();
    if (this.#end < (context.currentTime + LEAD_S / 2) * RATE) this.#beginRun(LEAD_S);
    const buffer = new AudioBuffer({ length: samples.length, sampleRate: RATE });
    buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(this.gain);
    source.onended = () => {
      this.#sources.delete(source);
      this.#pump();
    };
    source.start(this.#end / RATE);
    // The page was blocked, so this chunk starts late: the next one must not overlap it.
    if (this.#end < context.currentTime * RATE) this.#beginRun(LATE_S);
    this.#sources.add(source);
    this.#end += samples.length;
    this.#numScheduled += samples.length;
  }

  #beginRun(afterS) {
    const frame = Math.ceil((context.currentTime + afterS) * RATE);
    if (this.#runs.length === 0) {
      const delayS = frame / RATE - context.currentTime + (context.outputLatency || context.baseLatency);
      this.firstSoundMs = performance.now() + 1000 * delayS;
    } else {
      this.waitedS += (frame - this.#end) / RATE;
    }
    while (this.#runs.length > 1 && this.#runs[1].frame <= context.currentTime * RATE) this.#runs.shift();
    this.#runs.push({ frame, sample: this.#numScheduled });
    this.#end = frame;
  }

  #leave() {
    if (this.#isOver) return;
    this.#isOver = true;
    rest();
    this.resolve();
  }
}
