// Audio of a call over WebRTC: a track of the microphone's sound to the gateway, and one of the model's speech to the loudspeaker.

import { ask } from "./gateway.js";

/** Connection to the gateway; `channel` is the data channel of the events, with the interface of a WebSocket. */
export class Tracks {
  #peer = new RTCPeerConnection();
  #sound = new Audio();
  #sender;
  #stream = null; // of the microphone

  /** Args: `failed`, a function that receives the error if there is no connection, or null if it is lost. */
  constructor(failed) {
    this.channel = this.#peer.createDataChannel("oai-events");
    this.#sender = this.#peer.addTransceiver("audio").sender;
    this.#peer.ontrack = ({ track }) => {
      this.#sound.srcObject = new MediaStream([track]);
      this.#sound.play().catch(() => {}); // there is no sound device
    };
    this.#peer.onconnectionstatechange = () => {
      if (this.#peer.connectionState === "failed") failed(null);
    };
    this.#connect().catch(failed);
  }

  async #connect() {
    await this.#peer.setLocalDescription();
    const headers = { "content-type": "application/sdp" };
    const answer = await ask("v1/realtime/calls", { method: "POST", headers, body: this.#peer.localDescription.sdp });
    const sdp = await answer.text();
    if (this.#peer.signalingState !== "closed") await this.#peer.setRemoteDescription({ type: "answer", sdp });
  }

  /** Send the sound of the microphone; throw a readable Error if there is none. */
  async listen() {
    if (navigator.mediaDevices === undefined) {
      throw new Error("A browser lets this page use the microphone only over https or at http://localhost.");
    }
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true } });
    } catch {
      throw new Error("There is no microphone, or this page may not use it.");
    }
    if (this.#peer.signalingState === "closed") return this.close(); // hung up in the meantime
    await this.#sender.replaceTrack(this.#stream.getAudioTracks()[0]);
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#sound.srcObject = null;
    this.#peer.close();
  }
}
