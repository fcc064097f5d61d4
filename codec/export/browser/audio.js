// The audio thread: hops of the microphone to the worker, decoded blocks from the worker to the loudspeaker.
//
// Two outputs: the decoded signal, and the original that belongs to it, both late by the same time. Samples wait in a
// queue until `margin` of them are there, because the worker's answers do not come evenly. An empty queue is an
// underrun: silence until the margin is there again. A live margin grows with each underrun up to `most`, so that the
// delay settles at what the machine can do; what comes after an underrun and exceeds it is left out.

const REPORTS_PER_SECOND = 10;

class Loop extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    Object.assign(this, processorOptions); // hop, margin, most: samples; live: whether there is a microphone
    this.captured = 0; // samples of the microphone so far
    this.block = new Float32Array(this.hop);
    this.queue = [];
    this.queued = this.offset = 0; // samples in the queue; those of its first block that were played
    this.requested = 0; // frames that the worker was asked for
    this.playing = this.ended = this.done = false;
    this.underruns = this.played = this.delay = 0;
    this.port.onmessage = ({ data }) => {
      if (data.stop) this.done = true;
      else (this.worker = data.worker).onmessage = (message) => this.take(message.data);
    };
  }

  take(message) {
    this.requested -= message.frames ?? 0;
    this.ended ||= Boolean(message.ended);
    const time = message.decoded?.[0].length ?? 0;
    if (time) this.queue.push(message);
    this.queued += time;
    if (this.live && this.playing && this.queued > this.margin + 4 * this.hop) this.catchUp();
  }

  process([input], [decoded, original]) {
    if (this.done || !this.worker) return !this.done;
    const time = decoded[0].length;
    const captured = this.captured;
    if (this.live) this.capture(input[0], time);
    else this.request(time);
    if (!this.playing && (this.ended || this.queued >= this.margin + time)) this.start();
    if (this.playing) this.play(decoded, original, captured);
    if (currentFrame % (128 * Math.ceil(sampleRate / 128 / REPORTS_PER_SECOND)) === 0) this.report();
    return true;
  }

  capture(samples, time) { // an input without samples is one that has not begun
    for (let at = 0; at < time; at++) {
      this.block[this.captured++ % this.hop] = samples ? samples[at] : 0;
      if (this.captured % this.hop) continue;
      this.worker.postMessage({ audio: this.block, first: this.captured - this.hop }, [this.block.buffer]);
      this.block = new Float32Array(this.hop);
    }
  }

  request(time) {
    while (!this.ended && this.queued + this.requested * this.hop < this.margin + time + 2 * this.hop) {
      this.requested++;
      this.worker.postMessage({ need: 1 });
    }
  }

  start() {
    this.playing = true;
    if (this.live) this.catchUp();
  }

  catchUp() { // what came late would delay the rest
    while (this.queued > this.margin + 2 * this.hop) {
      this.queued -= this.queue.shift().decoded[0].length - this.offset;
      this.offset = 0;
    }
  }

  play(decoded, original, captured) {
    const time = decoded[0].length;
    let at = 0;
    while (at < time && this.queue.length) {
      const block = this.queue[0], count = Math.min(time - at, block.decoded[0].length - this.offset);
      for (const [output, channels] of [[decoded, block.decoded], [original, block.original]])
        output.forEach((samples, channel) => {
          const source = channels[Math.min(channel, channels.length - 1)];
          if (source) samples.set(source.subarray(this.offset, this.offset + count), at);
        });
      if (this.live) this.delay = captured + at - block.first - this.offset;
      at += count;
      this.queued -= count;
      this.played += count;
      if ((this.offset += count) === block.decoded[0].length) this.queue.shift(), (this.offset = 0);
    }
    if (at === time) return;
    this.playing = false;
    if (this.ended) {
      this.done = true;
      this.report();
    } else {
      this.underruns++;
      this.margin = Math.min(this.most, this.margin + this.hop / 2);
    }
  }

  report() {
    const { underruns, played, delay, done, playing } = this;
    this.port.postMessage({ underruns, played, delay, ended: done, playing });
  }
}

registerProcessor("loop", Loop);
