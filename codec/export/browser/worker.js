// The worker: loads the codec, encodes and decodes. Messages from the page start, end and save a session; the audio
// thread sends its messages through a port of its own.

import { Codec, FILES } from "./model.js";
import { Network, read } from "./read_codec.js";
import { write } from "./write_codec.js";

const AHEAD = 5; // frames that a file is encoded at a time, between which the loudspeaker gets its own
const RESERVE = 1.3; // of computing time, before a file plays that is not encoded yet
const COSTS = 50; // frames over which the computing time is averaged
const MOST_CHANNELS = 2; // that are played
const LATE = [0.1, 0.3]; // seconds that the microphone's samples wait to be encoded; after the second, up to the first are left out
const DRIFT = 2e-4; // of the clock of the sound device, at most
const BACKENDS = { wasm: ["ort.js", "ort.wasm", ["wasm"]], webgpu: ["ort-webgpu.js", "ort-webgpu.wasm", ["webgpu", "wasm"]] };
const CHECKED = 50; // frames in which another backend must give the same codes
const WARM_UP = [10, 1.5, 0.25]; // frames at least, seconds at most, and the share of real time that ends it

let codec, session, codebooks, network;
let last = Promise.resolve(); // all work, in order, because a graph runs once at a time

function enqueue(work, owner = session) {
  last = last.then(() => owner === session && work()).catch((error) => fail(error.message));
  return last;
}

const fail = (message) => postMessage({ failed: message });

async function fetched(names) {
  const answers = await Promise.all(names.map((name) => fetch(name)));
  for (const [at, answer] of answers.entries())
    if (!answer.ok) throw new Error(`${names[at]} is missing (HTTP ${answer.status}): write the folder again with codec page`);
  const total = answers.reduce((sum, answer) => sum + Number(answer.headers.get("Content-Length")), 0);
  let loaded = 0;
  return Promise.all(answers.map(async (answer) => {
    const parts = [], reader = answer.body.getReader();
    for (let part; !(part = await reader.read()).done; parts.push(part.value))
      postMessage({ loaded: (loaded += part.value.length), total });
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }));
}

async function load() {
  codec = await opened("wasm");
  codebooks = codec.numCodebooks;
  await warmUp();
  postMessage({ ready: codec.description });
}

/** The codec on a backend; what the GPU cannot compute is computed on the CPU. */
async function opened(backend) {
  const [script, program, providers] = BACKENDS[backend], ort = await import(`./${script}`);
  const [wasm, ...files] = await fetched([program, ...FILES]);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm });
  return Codec.load(ort, files, providers);
}

/** Change the backend; if that fails, or it gives other codes, the codec stays on the CPU. */
async function change(backend) {
  const before = codec;
  try {
    if (backend === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Error("the browser offers none");
    codec = await opened(backend);
    if (backend !== "wasm") await compare(codec, before);
    const cost = await warmUp(), frame = codec.hop / codec.sampleRate;
    if (backend !== "wasm" && cost > frame) throw new Error(`it takes ${(1000 * cost).toFixed(0)} ms for a frame of ${1000 * frame} ms`);
    await before.release();
    postMessage({ backend, cost });
  } catch (error) {
    codec = before;
    postMessage({ backend: "wasm", reason: error.message });
  }
}

/** Throw an Error if codecs give different codes for noise that fades; a frame may be a near-tie. */
async function compare(one, other) {
  const audio = Float32Array.from({ length: CHECKED * one.hop }, (_, at) => Math.sin(at * at) * 2 ** (-at / one.hop / 5));
  const [found, expected] = [await one.encoder(1)(audio), await other.encoder(1)(audio)];
  const wrong = new Set(Array.from(found.keys()).filter((at) => found[at] !== expected[at]).map((at) => at % CHECKED));
  if (wrong.size > 1) throw new Error(`it gives other codes in ${wrong.size} of ${CHECKED} frames`);
}

/** Run the graphs until the browser has compiled what is used most, so that the first seconds have no gaps; seconds per frame. */
async function warmUp() {
  const encode = codec.encoder(1), decode = codec.decoder(1), start = performance.now(), [least, most, share] = WARM_UP;
  const slow = (share * codec.hop) / codec.sampleRate;
  let cost = slow;
  for (let frame = 0; (frame < least || cost > slow) && performance.now() - start < 1000 * most; frame++) {
    const before = performance.now();
    await decode(await encode(new Float32Array(codec.hop)));
    cost = (performance.now() - before) / 1000;
  }
  return cost;
}

/** The codes of a signal so far, and what is needed to decode and save them. */
class Session {
  constructor(port, rows) {
    this.port = port;
    this.rows = rows;
    this.decode = codec.decoder(rows);
    this.frames = 0;
    this.available = this.complete = codec.numCodebooks; // of any frame, and of all frames
    this.stored = new Int32Array(0); // [frames, rows, codebooks], and room for more frames
    this.cost = { encode: 0, decode: 0 }; // seconds per frame
  }

  /** Append codes [rows, codebooks, frames]. */
  add(codes) {
    const size = this.rows * codec.numCodebooks, frames = codes.length / size, needed = size * (this.frames + frames);
    if (needed > this.stored.length) {
      const grown = new Int32Array(2 * needed);
      grown.set(this.stored);
      this.stored = grown;
    }
    for (let frame = 0; frame < frames; frame++, this.frames++)
      for (let at = 0; at < size; at++) this.stored[this.frames * size + at] = codes[at * frames + frame];
  }

  /** Codes [rows, codebooks, frames] of frames `first` to `last`. */
  codes(first, last) {
    const size = this.rows * codec.numCodebooks, frames = last - first;
    return Int32Array.from({ length: size * frames }, (_, at) => this.stored[(first + (at % frames)) * size + Math.floor(at / frames)]);
  }

  async timed(what, frames, work) {
    const start = performance.now(), result = await work(), cost = (performance.now() - start) / 1000 / frames;
    const share = Math.min(1, frames / COSTS);
    this.cost[what] = this.cost[what] ? this.cost[what] * (1 - share) + cost * share : cost;
    return result;
  }

  /** Channels of decoded rows [rows, time]: by the matrix of the file, if it has one. */
  mixed(audio) {
    const time = audio.length / this.rows, rows = Array.from({ length: this.rows }, (_, row) => audio.slice(row * time, (row + 1) * time));
    const channels = this.mix ?? rows.map((_, row) => rows.map((_, other) => Number(row === other)));
    return channels.slice(0, MOST_CHANNELS).map((weights) =>
      Float32Array.from({ length: time }, (_, at) => weights.reduce((sum, weight, row) => sum + weight * rows[row][at], 0)));
  }

  send(decoded, original, more) {
    this.port.postMessage({ decoded, original, ...more }, [...decoded, ...original].map((samples) => samples.buffer));
  }
}

/** The microphone: a frame of codes for each hop. */
class Live extends Session {
  constructor(port) {
    super(port, 1);
    this.encode = codec.encoder(1);
    this.held = new Float32Array(codec.delay); // the original, late as the decoder is
    this.time = this.skipped = 0; // samples, frames
    this.earliest = Infinity; // seconds from a hop in the audio thread's clock to its arrival in the worker's
    port.onmessage = ({ data }) => enqueue(() => this.push(data), this);
  }

  /** Whether a hop comes so late that it is left out; messages that wait for the worker cannot be counted. */
  isLate(first) {
    const age = performance.now() / 1000 - first / codec.sampleRate;
    this.earliest = Math.min(this.earliest + (DRIFT * codec.hop) / codec.sampleRate, age);
    this.skips = age - this.earliest > LATE[this.skips ? 0 : 1];
    return this.skips;
  }

  async push({ audio, first }) {
    if (this.isLate(first)) return void this.skipped++;
    const codes = await this.timed("encode", 1, () => this.encode(audio));
    const decoded = await this.timed("decode", 1, () => this.decode(codes, codebooks));
    this.add(codes);
    this.time = Math.max(0, this.frames * codec.hop - codec.delay);
    const joined = new Float32Array(this.held.length + audio.length);
    joined.set(this.held);
    joined.set(audio, this.held.length);
    this.held = joined.slice(audio.length);
    this.send([decoded], [joined.slice(0, audio.length)], { first: first - codec.delay });
    if (this.frames % 10 === 0) postMessage({ made: this.frames, cost: this.cost, skipped: this.skipped });
  }
}

/** A recording: decoded when the loudspeaker asks for it. */
class Recording extends Session {
  constructor(port, rows, { time, mix, original = [] }) {
    super(port, rows);
    Object.assign(this, { time, mix, original });
    this.total = codec.frames(time);
    this.played = this.waiting = 0; // frames that were decoded, and that the loudspeaker asked for
    port.onmessage = ({ data }) => {
      this.waiting += data.need;
      enqueue(() => this.pull(), this);
    };
  }

  /** Whether the rest will be encoded, and all decoded, before it is played; a slow device plays later. */
  keepsUp() {
    const { encode, decode } = this.cost, left = this.total - this.frames;
    const seconds = left * encode + this.total * (decode || encode);
    return !left || (encode > 0 && RESERVE * seconds < (this.total * codec.hop) / codec.sampleRate);
  }

  /** Decode the frames that are asked for, or as many of them as are encoded: several at a time cost less. */
  async pull() {
    if (!this.played && !this.keepsUp()) return;
    const frames = Math.min(this.waiting, this.frames - this.played);
    this.waiting -= frames;
    if (!frames) return this.played < this.total ? undefined : this.port.postMessage({ ended: true });
    const codes = this.codes(this.played, this.played + frames);
    const audio = await this.timed("decode", frames, () => this.decode(codes, codebooks));
    const start = this.played * codec.hop - codec.delay, end = Math.min(this.time, start + frames * codec.hop);
    this.played += frames;
    const decoded = this.mixed(audio).map((samples) => samples.slice(Math.max(0, -start), end - start));
    const original = this.original.map((samples) => samples.slice(Math.max(0, start), end));
    this.send(decoded, original, { frames, ended: this.played >= this.total });
    this.report();
  }

  report() {
    const { frames: made, total, cost, rows, time, available } = this;
    postMessage({ made, total, cost, rows, time, available });
  }

  /** Encode the original, ahead of what is played. */
  async encodeAll() {
    const encode = codec.encoder(this.rows), time = AHEAD * codec.hop;
    for (let first = 0; first < this.total && this === session; first += AHEAD) {
      const frames = Math.min(AHEAD, this.total - first), audio = new Float32Array(this.rows * frames * codec.hop);
      for (let row = 0; row < this.rows; row++) {
        const samples = this.original[row].subarray(first * codec.hop, first * codec.hop + time);
        audio.set(samples, row * frames * codec.hop);
      }
      await enqueue(async () => {
        this.add(await this.timed("encode", frames, () => encode(audio)));
        if (this.waiting) await this.pull();
        this.report();
      }, this);
      await new Promise((resume) => setTimeout(resume)); // requests of the loudspeaker come first
    }
  }
}

const isEqual = (one, other) => one.every((sample, at) => sample === other[at]);

function openAudio(port, channels) {
  const kept = channels.slice(0, MOST_CHANNELS), original = kept.length === 2 && isEqual(...kept) ? kept.slice(0, 1) : kept;
  session = new Recording(port, original.length, { time: channels[0].length, original });
  session.encodeAll();
}

/** The network of payload coder 2; null for a codec that has none, whose file is empty. */
async function loadNetwork() {
  const [bytes] = await fetched(["entropy.safetensors"]);
  return bytes.length ? Network.from(bytes) : null;
}

const WAYS_OUT = { "codes by": "write it with codec encode --entropy adaptive", version: "convert it with codec transcode" };

function wayOut(problem) {
  const known = Object.keys(WAYS_OUT).find((start) => problem.startsWith(start));
  return known ? WAYS_OUT[known] : "fetch the file again";
}

async function openCodec(port, bytes, name) {
  network ??= await loadNetwork();
  let file;
  try { file = read(bytes, network); }
  catch ({ message }) { throw new Error(`${name} cannot be read (${message}): ${wayOut(message)}`); }
  const { header, packets } = file, model = codec.description;
  if (header.weights_hash !== model.weights_hash)
    throw new Error(`${name} was made by ${header.model || "an unnamed model"} (weights ${header.weights_hash.slice(0, 12)}), and this page has ` +
      `${model.model || "a model"} (weights ${model.weights_hash.slice(0, 12)}): write a page with codec page DIR --model ${header.model || "FILE"}`);
  const time = Math.ceil((header.time * header.sample_rate) / header.source_rate);
  session = new Recording(port, header.rows, { time, mix: header.mix });
  for (const packet of packets) session.add(filled(packet, header.rows));
  // of whole packets; -1 in a series says that a frame lacks this codebook
  const counts = packets.map(({ codes }) => Math.min(...codes.map((row) => row.filter((one) => !one.includes(-1)).length)));
  session.total = Math.min(session.total, session.frames);
  Object.assign(session, { available: Math.max(...packets.map(({ codes }) => codes[0].length)), complete: Math.min(...counts) });
  session.report();
}

/** The codes of a packet, with -1 in the codebooks that it does not have. */
function filled({ frames, codes }, rows) {
  const found = new Int32Array(rows * codec.numCodebooks * frames).fill(-1);
  codes.forEach((row, at) => row.forEach((series, codebook) => found.set(series, (at * codec.numCodebooks + codebook) * frames)));
  return found;
}

/** The blocks without the decoder's delay and without what follows `time` samples. */
function trimmed(blocks, time) {
  let start = -codec.delay;
  return blocks.map((block) => {
    const first = start, size = block[0].length;
    start += size;
    return block.map((samples) => samples.slice(Math.max(0, -first), Math.max(0, Math.min(size, time - first))));
  });
}

async function save(kind) {
  const { rows, frames, time, complete } = session;
  if (kind === "codec") {
    const options = { rows, codebooks: Math.min(codebooks, complete), time };
    return postMessage({ saved: write(codec.description, session.codes(0, frames), options), kind });
  }
  const decode = codec.decoder(rows), parts = [];
  for (let first = 0; first < frames; first += AHEAD)
    parts.push(session.mixed(await decode(session.codes(first, Math.min(frames, first + AHEAD)), codebooks)));
  postMessage({ saved: wav(trimmed(parts, time)), kind });
}

/** A WAV file of 16 bits of blocks of channels. */
function wav(blocks) {
  const channels = blocks[0].length, time = blocks.reduce((sum, block) => sum + block[0].length, 0), size = 2 * channels * time;
  const view = new DataView(new ArrayBuffer(44 + size)), rate = codec.sampleRate;
  const text = (at, value) => [...value].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt()));
  text(0, "RIFF"), view.setUint32(4, 36 + size, true), text(8, "WAVEfmt "), view.setUint32(16, 16, true);
  [1, channels].forEach((value, index) => view.setUint16(20 + 2 * index, value, true));
  [rate, 2 * channels * rate].forEach((value, index) => view.setUint32(24 + 4 * index, value, true));
  [2 * channels, 16].forEach((value, index) => view.setUint16(32 + 2 * index, value, true));
  text(36, "data"), view.setUint32(40, size, true);
  let at = 44;
  for (const block of blocks)
    for (let sample = 0; sample < block[0].length; sample++)
      for (const channel of block) view.setInt16(at, Math.round(32767 * Math.max(-1, Math.min(1, channel[sample]))), true), (at += 2);
  return new Uint8Array(view.buffer);
}

async function received({ load: isFirst, codebooks: count, backend, stop, live, audio, codec: file, name, port, save: kind }) {
  if (isFirst) await load();
  if (count) codebooks = count;
  if (stop) session = undefined;
  if (backend) await enqueue(() => change(backend));
  if (live) session = new Live(live);
  if (audio) openAudio(port, audio);
  if (file) await openCodec(port, new Uint8Array(file), name);
  if (kind) enqueue(() => save(kind));
}

onmessage = ({ data }) => received(data).catch((error) => fail(error.message));
