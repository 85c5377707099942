// Plays samples while they are still being made.

export const RATE = 24000; // Hz, as the gateway sends pcm
const LEAD_S = 0.03; // from handing a buffer over to its first sample: less, and the audio thread has passed it already
const LATE_S = 0.02; // within which the audio thread begins a sound that is scheduled for a time it has passed
const SCHEDULED_S = 10; // of sound lies ready in the audio graph; the rest waits as 16-bit samples
const FADE_S = 0.005; // time constant, so that a stop is no click
const NO_DEVICE_MS = 3000; // in which the clock of an audio device moves, if there is one
const IDLE_MS = 2000; // after which the audio device is left

let context = null; // the page's one, which a click must come before
let last = null; // of the playbacks: there is one at a time
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

/** One utterance: `add` samples as they come, `end` it or `stop` it; `finished` resolves when it is over. */
export class Playback {
  chunks = []; // Int16Array each, all of it
  numSamples = 0;
  firstSoundMs = null; // when its first sample leaves the device, on performance.now()'s clock
  waitedS = 0; // in which it had nothing to play
  #numScheduled = 0; // chunks
  #runs = []; // of samples without a gap: first frame of the context, first sample
  #end = 0; // the frame behind what is scheduled
  #sources = new Set();
  #isComplete = false;
  #isOver = false;
  #isWatched = false; // whether the device's clock moves
  isMute = false; // there is no audio device: nothing will be heard

  constructor() {
    last?.stop();
    last = this;
    this.finished = new Promise((resolve) => (this.resolve = resolve));
    wake().then(() => this.#pump());
    this.gain = new GainNode(context);
    this.gain.connect(context.destination);
  }

  /** More samples. */
  add(samples) {
    this.chunks.push(samples);
    this.numSamples += samples.length;
    this.#watch();
    this.#pump();
  }

  /** Find out whether there is a device that plays: its clock moves then. */
  #watch() {
    if (this.#isWatched) return;
    this.#isWatched = true;
    const begun = context.currentTime;
    setTimeout(() => {
      this.isMute = !this.#isOver && context.currentTime === begun;
      this.#pump();
    }, NO_DEVICE_MS);
  }

  /** There are no more. */
  end() {
    this.#isComplete = true;
    this.#pump();
  }

  /** Fall silent now. */
  stop() {
    if (this.#isOver) return;
    this.gain.gain.setTargetAtTime(0, context.currentTime, FADE_S);
    for (const source of this.#sources) source.stop(context.currentTime + 5 * FADE_S);
    this.#leave();
  }

  get isOver() {
    return this.#isOver;
  }

  /** How many samples have been played. */
  get numPlayed() {
    const frame = context.currentTime * RATE;
    const run = this.#runs.findLast((each) => each.frame <= frame);
    if (run === undefined) return 0;
    const next = this.#runs[this.#runs.indexOf(run) + 1];
    const limit = next === undefined ? this.#end - run.frame : next.sample - run.sample;
    return run.sample + Math.min(frame - run.frame, limit);
  }

  /** Seconds that have come and are not played yet. */
  get aheadS() {
    return (this.numSamples - this.numPlayed) / RATE;
  }

  #pump() {
    if (this.#isOver) return;
    if (this.isMute && this.#isComplete) return this.#leave();
    if (context.state !== "running") return;
    const now = context.currentTime * RATE;
    while (this.#numScheduled < this.chunks.length && this.#end - now < SCHEDULED_S * RATE) this.#schedule();
    if (this.#isComplete && this.#sources.size === 0 && this.#numScheduled === this.chunks.length) this.#leave();
  }

  #schedule() {
    const samples = this.chunks[this.#numScheduled++];
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
    // The page was held up, and the sound begins only now: what follows it must not be mixed with it.
    if (this.#end < context.currentTime * RATE) this.#beginRun(LATE_S);
    this.#sources.add(source);
    this.#end += samples.length;
  }

  #beginRun(afterS) {
    const frame = Math.ceil((context.currentTime + afterS) * RATE);
    const before = this.chunks.slice(0, this.#numScheduled - 1).reduce((sum, chunk) => sum + chunk.length, 0);
    if (this.#runs.length === 0) {
      const delayS = frame / RATE - context.currentTime + (context.outputLatency || context.baseLatency);
      this.firstSoundMs = performance.now() + 1000 * delayS;
    } else {
      this.waitedS += (frame - this.#end) / RATE;
    }
    this.#runs.push({ frame, sample: before });
    this.#end = frame;
  }

  #leave() {
    if (this.#isOver) return;
    this.#isOver = true;
    rest();
    this.resolve();
  }
}
