// Read a .codec file of version 2 in plain JavaScript, in a browser or in node:
//
//     import { read, Network } from "./read_codec.mjs";
//     const { header, packets } = read(new Uint8Array(await file.arrayBuffer()));
//
//     node docs/examples/read_codec.mjs recording.codec [NAME.entropy.safetensors]
//
// Payload coder 2 needs its network: read(bytes, await Network.from(bytesOfTheNetwork)). It was written from
// docs/file-format.md. It throws at the first damage.

const FIELDS = ["source_rate", "channels", "time", "sample_rate", "hop", "decoder_delay", "model_channels",
  "segment_frames", "frames_per_packet"];

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

const crc32 = (bytes) => ~bytes.reduce((crc, byte) => CRC[(crc ^ byte) & 255] ^ (crc >>> 8), ~0) >>> 0;

const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

const isEqual = (bytes, expected) => expected.every((byte, at) => bytes[at] === byte);

const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

const number = (bytes) => view(bytes.take(4)).getFloat32(0, true);

class Bytes {
  constructor(data) { this.data = data; this.at = 0; }

  take(size) {
    if (this.at + size > this.data.length) throw new Error("truncated");
    this.at += size;
    return this.data.subarray(this.at - size, this.at);
  }

  number() { // LEB128; products instead of shifts, because shifts have 32 bits
    for (let number = 0, unit = 1; ; unit *= 128) {
      const [byte] = this.take(1);
      number += (byte & 127) * unit;
      if (byte < 128) return number;
    }
  }

  sized() { return this.take(this.number()); }

  check(start) {
    const expected = crc32(this.data.subarray(start, this.at));
    if (view(this.take(4)).getUint32(0, true) !== expected) throw new Error(`damaged at byte ${start}`);
  }
}

function readHeader(file) {
  if (!isEqual(file.take(8), [0x89, 0x43, 0x44, 0x43, 0x0d, 0x0a, 0x1a, 0x0a])) throw new Error("not a .codec file");
  const start = view(file.take(4)), version = start.getUint16(0, true);
  const fields = new Bytes(file.take(start.getUint16(2, true)));
  file.check(0);
  if (version !== 2) throw new Error(`version ${version}`);
  const header = { weights_hash: hex(fields.take(32)), family: text(fields.sized()), model: text(fields.sized()) };
  for (const name of FIELDS) header[name] = fields.number();
  header.codebook_sizes = [];
  for (let runs = fields.number(); runs > 0; runs--) {
    const count = fields.number(), size = fields.number();
    header.codebook_sizes.push(...Array(count).fill(size));
  }
  Object.assign(header, { rows: header.channels, sample_format: "PCM_16" });
  while (fields.at < fields.data.length) {
    const tag = fields.number(), content = new Bytes(fields.sized());
    if (tag === 1) header.sample_format = text(content.data);
    if (tag === 2) header.source = { size: content.number(), checksum: hex(content.take(8)) };
    if (tag === 3) header.network = hex(content.data);
    if (tag === 4) {
      const coded = (header.rows = content.number()), row = () => Array.from({ length: coded }, () => number(content));
      header.mix = Array.from({ length: header.channels }, row);
    }
  }
  header.rows = Math.ceil(header.rows / header.model_channels);
  return header;
}

function readCodes(kind, body, header, network) {
  const coder = kind % 32, layered = (kind & 32) > 0, varying = (kind & 64) > 0;
  const [first, frames, codebooks] = [body.number(), body.number(), body.number()];
  const isKnown = coder < 2 || (coder === 2 && network && network.digest === header.network);
  if (!isKnown) throw new Error(`codes by coder ${coder}, network ${header.network}`);
  const packet = { first, frames };
  if (header.segment_frames) {
    const row = () => Array.from({ length: header.rows }, () => number(body));
    packet.scale = Array.from({ length: Math.ceil(frames / header.segment_frames) }, row);
  }
  const sizes = header.codebook_sizes.slice(0, codebooks);
  const reader = coder === 0 ? new Packed(body, sizes, varying ? frames * header.rows : 0)
    : new Adaptive(body.data.subarray(body.at), sizes, { rows: header.rows, network: coder === 2 ? network : null,
      counted: varying ? frames : 0, layered });
  packet.codes = Array.from({ length: header.rows }, () => sizes.map(() => []));
  for (let frame = 0; frame < frames; frame++)
    for (const [row, codes] of packet.codes.entries()) {
      const found = reader.frame(row); // a frame that has fewer codebooks than the packet ends with -1
      codes.forEach((series, codebook) => series.push(found[codebook] ?? -1));
    }
  return packet;
}

class Packed { // coder 0
  constructor(body, sizes, counted) { // `counted`: frames of all rows that state their number of codebooks
    Object.assign(this, { body, bits: 0, pending: 0 }); // at most 24 + 7 bits are pending
    this.widths = sizes.map((size) => Math.ceil(Math.log2(size)));
    this.counts = Array.from({ length: counted }, () => this.code(Math.ceil(Math.log2(sizes.length))) + 1);
    Object.assign(this, { bits: 0, pending: 0, at: 0 });
  }

  frame() { return this.widths.slice(0, this.counts[this.at++]).map((width) => this.code(width)); }

  code(width) {
    for (; this.pending < width; this.pending += 8) this.bits = this.bits * 256 + this.body.take(1)[0];
    this.pending -= width;
    const code = Math.floor(this.bits / 2 ** this.pending);
    this.bits %= 2 ** this.pending;
    return code;
  }
}

class RangeDecoder { // values by their frequencies; `offset` is how far the bytes lie above the encoder's `low`
  constructor(payload) {
    Object.assign(this, { payload, at: 0, offset: 0, width: 2 ** 48 });
    for (let byte = 0; byte < 6; byte++) this.offset = this.offset * 256 + this.byte();
  }

  byte() { return this.payload[this.at++] ?? 0; }

  target(total) { return Math.floor(this.offset / Math.floor(this.width / total)); }

  move(start, count, total) {
    const unit = Math.floor(this.width / total);
    this.offset -= start * unit;
    for (this.width = count * unit; this.width < 2 ** 40; this.width *= 256)
      this.offset = this.offset * 256 + this.byte();
  }

  place(frequencies) {
    const total = frequencies.reduce((sum, count) => sum + count, 0), target = this.target(total);
    let place = 0, start = 0;
    while (place < frequencies.length && start + frequencies[place] <= target) start += frequencies[place++];
    if (place === frequencies.length) throw new Error("codes that no encoder writes");
    this.move(start, frequencies[place], total);
    return place;
  }

  uniform(size) {
    const found = this.target(size);
    if (found >= size) throw new Error("codes that no encoder writes");
    this.move(found, 1, size);
    return found;
  }
}

class Adaptive { // coders 1 and 2
  constructor(payload, sizes, { rows, network, counted, layered }) { // `counted`: frames that state their codebooks
    const ends = [...[4, 6, 12].filter((end) => layered && end < sizes.length), sizes.length], left = new Bytes(payload);
    const parts = ends.map((_, layer) => (layer < ends.length - 1 ? left.sized() : payload.subarray(left.at)));
    Object.assign(this, { sizes, coders: parts.map((part) => new RangeDecoder(part)) }); // of the layers
    this.layers = sizes.map((_, codebook) => ends.findIndex((end) => codebook < end));
    this.counts = new Map(); // of [no, yes] for each question, which all rows share
    this.rows = Array.from({ length: rows }, () => ({
      before: null, repeated: sizes.map(() => false), follow: sizes.map(() => new Map()),
      recent: sizes.map(() => new Map()), predictor: network && new Predictor(network, sizes.length, ends),
    }));
    this.numbers = this.readCounts(counted * rows);
  }

  frame(number) { // the codes of a row in the next frame
    const row = this.rows[number], above = number ? this.rows[number - 1].before : null; // this frame's already
    const { before, repeated, predictor } = row, codes = [];
    let sameRow = null, sameFrame = null;
    const count = this.numbers.shift() ?? this.sizes.length;
    repeated.fill(false, count);
    for (const [codebook, size] of this.sizes.slice(0, count).entries()) {
      const higher = codebook > 0, lower = higher ? codes[codebook - 1] : before?.[0];
      const follow = row.follow[codebook], recent = row.recent[codebook], refused = new Set();
      const candidates = [[above?.[codebook], `row ${higher} ${sameRow}`],
        [before?.[codebook], `repeat ${higher} ${sameFrame} ${repeated[codebook]}`],
        [follow.get(lower), `follow ${higher}`]];
      const coder = this.coders[this.layers[codebook]];
      let code = null;
      for (const [candidate, question] of candidates) {
        if (code !== null || candidate === undefined || refused.has(candidate)) continue;
        if (this.ask(codebook, question)) code = candidate;
        refused.add(candidate);
      }
      const left = [...recent.keys()].filter((key) => !refused.has(key));
      if (code === null && left.length) {
        if (this.ask(codebook, `recent ${higher}`)) code = left[coder.place(left.map((key) => recent.get(key)))];
        left.forEach((key) => refused.add(key));
      }
      if (code === null && predictor)
        code = coder.place(predictor.frequencies(codebook).map((count, key) => (refused.has(key) ? 0 : count)));
      code ??= coder.uniform(size);
      predictor?.push(codebook, code);
      codes.push(code);
      follow.set(lower, code);
      recent.set(code, (recent.get(code) ?? 0) + 1);
      if (recent.size > 64) recent.delete(recent.keys().next().value);
      sameRow = code === above?.[codebook];
      sameFrame = repeated[codebook] = code === before?.[codebook];
    }
    row.before = codes;
    predictor?.endFrame();
    return codes;
  }

  readCounts(places) { // the numbers of codebooks, frame by frame and, within a frame, row by row
    const times = this.sizes.map(() => 1), found = [];
    for (; found.length < places;) {
      let number = found[found.length - this.rows.length];
      if (number === undefined || !this.ask(0, "count")) {
        const others = times.map((_, at) => at + 1).filter((other) => other !== number);
        number = others[this.coders[0].place(others.map((other) => times[other - 1]))];
        times[number - 1]++;
      }
      found.push(number);
    }
    return found;
  }

  ask(codebook, about) {
    const layer = this.layers[codebook], question = `${layer} ${about}`;
    const counts = this.counts.get(question) ?? [1, 1], answer = this.coders[layer].place(counts);
    counts[answer] += 2;
    const isFull = counts[0] + counts[1] > 255;
    this.counts.set(question, isFull ? counts.map((count) => Math.ceil(count / 2)) : counts);
    return answer === 1;
  }
}

const shifted = (number, shift) => Math.floor(number / 2 ** shift + 0.5);

const limited = (number) => Math.min(Math.max(number, -127), 127);

const DTYPES = { I8: ["int8", 1, "getInt8"], I32: ["int32", 4, "getInt32"] };

export class Network { // its tensors as lists of rows, or lists of numbers for tensors of one dimension
  static async from(file) {
    const size = Number(view(file).getBigUint64(0, true)), data = file.subarray(8 + size), network = new Network();
    const { __metadata__, ...entries } = JSON.parse(text(file.subarray(8, 8 + size))), hashed = [];
    for (const name of Object.keys(entries).sort()) {
      const { dtype, shape, data_offsets: [first, end] } = entries[name], [label, bytes, get] = DTYPES[dtype];
      const raw = data.subarray(first, end), of = view(raw);
      hashed.push(new TextEncoder().encode(`["${name}", "${label}", [${shape.join(", ")}]]`), raw);
      const numbers = Array.from({ length: raw.length / bytes }, (_, at) => of[get](at * bytes, true));
      const [count, length] = shape, row = (_, at) => numbers.slice(at * length, (at + 1) * length);
      network[name] = shape.length === 2 ? Array.from({ length: count }, row) : numbers;
    }
    const digest = await crypto.subtle.digest("SHA-256", await new Blob(hashed).arrayBuffer());
    network.digest = hex(new Uint8Array(digest)).slice(0, 8);
    return network;
  }

  layer(weight, bias, shift, x) {
    return this[weight].map((row, at) => shifted(row.reduce((sum, w, n) => sum + w * x[n], this[bias][at]), shift));
  }

  rest(vectors, first) {
    const sums = (this["input.1"] ?? this["input.0"])[0].map(() => 0);
    for (let codebook = first; codebook < vectors.length; codebook++)
      vectors[codebook].forEach((number, at) => { sums[at] += this.gain[codebook] * number; });
    return sums.map((sum) => limited(shifted(sum, 5)));
  }
}

class Predictor { // the network and what it knows of one row of a packet
  constructor(network, codebooks, ends) {
    Object.assign(this, { network, ends });
    this.zeros = Array.from({ length: codebooks }, (_, codebook) => network[`input.${codebook}`][0].map(() => 0));
    this.before = this.zeros;
    this.first = Array(8).fill(this.before[0]); // vectors of codebook 0 in the frames before, the newest first
    this.past = [[], []]; // vectors of the two frames before, the newest first
    this.vectors = []; // of this frame
  }

  push(codebook, code) {
    this.vectors.push(this.network[`input.${codebook}`][code]);
  }

  endFrame() {
    this.first = [this.vectors[0], ...this.first.slice(0, 7)];
    this.past = [this.vectors, this.past[0]];
    [this.before, this.vectors] = [[...this.vectors, ...this.zeros.slice(this.vectors.length)], []];
  }

  frequencies(codebook) {
    const { network, first, vectors } = this, [toPrediction, toLogit] = network.shift[codebook];
    const end = this.ends.find((end) => codebook < end), rests = this.past.map((one) => network.rest(one.slice(0, end), 1));
    const older = first[0].map((_, at) => first.slice(3).reduce((sum, vector) => sum + vector[at], 0));
    const context = [...first.slice(0, 3).flat(), ...older.map((sum) => limited(shifted(sum, 2))), ...rests.flat(),
      ...rests[0].map(Math.abs), ...this.before[codebook]];
    if (codebook >= 1) context.push(...vectors[0]);
    if (codebook >= 2) context.push(...vectors[1], ...vectors[1].map(Math.abs), ...network.rest(vectors, 2));
    const prediction = network.layer(`weight.${codebook}`, `bias.${codebook}`, toPrediction, context).map(limited);
    const logits = network.layer(`output.${codebook}`, `output_bias.${codebook}`, toLogit, prediction);
    const most = Math.max(...logits), { exp } = network;
    return logits.map((logit) => exp[Math.min(most - logit, exp.length - 1)]);
  }
}

export function read(data, network = null) {
  const file = new Bytes(data), header = readHeader(file), packets = [];
  for (;;) {
    const start = file.at;
    if (!isEqual(file.take(2), [0xf5, 0xc3])) throw new Error(`damaged at byte ${start}`);
    const [kind] = file.take(1), body = new Bytes(file.sized());
    file.check(start);
    if (kind < 128) packets.push(readCodes(kind, body, header, network));
    if (kind === 255) {
      [header.time, header.frames] = [body.number(), body.number()];
      return { header, packets };
    }
  }
}

if (globalThis.process?.argv[1]?.endsWith("read_codec.mjs")) {
  const { readFileSync } = await import("node:fs");
  try {
    const [recording, network] = process.argv.slice(2).map((name) => new Uint8Array(readFileSync(name)));
    console.log(JSON.stringify(read(recording, network && await Network.from(network))));
  } catch ({ message }) {
    console.error(message);
    process.exit(1);
  }
}
