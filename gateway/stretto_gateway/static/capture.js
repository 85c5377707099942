// On the audio thread: hands the microphone's samples over.

class Capture extends AudioWorkletProcessor {
  process([[samples]]) {
    if (samples) this.port.postMessage(samples.slice());
    return true;
  }
}

registerProcessor("capture", Capture);
