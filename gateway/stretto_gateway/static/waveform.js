// Waveform of the speech received so far, and the playback position.

const STEP_S = 0.05; // duration per peak
const BAR_PX = 3;
const PITCH_PX = 6;

/** Canvas with the peaks of speech that is still arriving. */
export class Waveform {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
  }

  clear() {
    this.peaks = []; // one per STEP_S, 0 to 1
    this.numSamples = 0;
    this.shown = "";
  }

  /** Append samples, Int16Array at `rate` Hz. */
  add(samples, rate) {
    for (const sample of samples) {
      const step = Math.floor(this.numSamples++ / (rate * STEP_S));
      this.peaks[step] = Math.max(this.peaks[step] ?? 0, Math.abs(sample) / 32768);
    }
  }

  /** Draw if anything has changed; `playedS`: seconds played so far. */
  draw(playedS) {
    const { canvas, peaks } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = window.devicePixelRatio;
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const shown = [peaks.length, Math.floor(playedS / STEP_S), width, scale, isDark].join();
    if (shown === this.shown) return; // save CPU time, which the model may need
    this.shown = shown;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const numBars = Math.floor(width / PITCH_PX);
    const perBar = Math.max(1, peaks.length / numBars);
    for (let bar = 0; bar < numBars; bar++) {
      const first = Math.floor(bar * perBar);
      const inBar = peaks.slice(first, Math.max(first + 1, Math.floor((bar + 1) * perBar)));
      const long = Math.max(BAR_PX, Math.max(0, ...inBar) ** 0.7 * height);
      const isPlayed = inBar.length > 0 && bar * perBar * STEP_S < playedS;
      pen.fillStyle = colour(isPlayed ? "--accent" : inBar.length > 0 ? "--rest" : "--line");
      pen.beginPath();
      pen.roundRect(bar * PITCH_PX, (height - long) / 2, BAR_PX, long, BAR_PX / 2);
      pen.fill();
    }
  }
}
