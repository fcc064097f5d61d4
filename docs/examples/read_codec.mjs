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

const NO_ENCODER = "codes that no encoder writes";

function readCodes(kind, body, header, network) {
  const coder = kind % 32, hasEnds = (kind & 32) > 0, varying = (kind & 64) > 0, { rows } = header;
  const [first, frames, codebooks] = [body.number(), body.number(), body.number()];
  const isKnown = coder < 2 || (coder === 2 && network && network.digest === header.network);
  if (!isKnown) throw new Error(`codes by coder ${coder}, network ${header.network}`);
  if (rows * frames * codebooks > 2 ** 20) throw new Error(NO_ENCODER);
  const packet = { first, frames }, sizes = header.codebook_sizes.slice(0, codebooks);
  if (header.segment_frames) {
    const row = () => Array.from({ length: rows }, () => number(body));
    packet.scale = Array.from({ length: Math.ceil(frames / header.segment_frames) }, row);
  }
  // [rows][codebooks][frames], -1 where a frame has fewer codebooks than the packet
  packet.codes = Array.from({ length: rows }, () => sizes.map(() => Array(frames).fill(-1)));
  if (coder === 0) readPacked(body, sizes, packet.codes, varying);
  else new (coder === 1 ? Adaptive : Model)(body, sizes, packet.codes, hasEnds, varying, network).read();
  return packet;
}

function readPacked(body, sizes, codes, varying) { // coder 0
  let bits = 0, pending = 0; // at most 24 + 7 bits are pending
  const number = (size) => {
    const width = Math.ceil(Math.log2(size));
    for (; pending < width; pending += 8) bits = bits * 256 + body.take(1)[0];
    pending -= width;
    const code = Math.floor(bits / 2 ** pending);
    bits %= 2 ** pending;
    return code;
  };
  const places = codes[0][0].flatMap((_, frame) => codes.map((row) => [row, frame]));
  const counts = places.map(() => (varying ? number(sizes.length) + 1 : sizes.length));
  [bits, pending] = [0, 0];
  for (const [at, [row, frame]] of places.entries())
    for (let codebook = 0; codebook < counts[at]; codebook++) row[codebook][frame] = number(sizes[codebook]);
}

class RangeDecoder { // values by their frequencies; `offset` is how far the bytes lie above the encoder's `low`
  constructor(payload) {
    Object.assign(this, { payload, at: 0, offset: 0, width: 2 ** 48 });
    while (this.at < 6) this.offset = this.offset * 256 + this.byte();
  }

  byte() { return this.payload[this.at++] ?? 0; }

  target(total) {
    const target = Math.floor(this.offset / Math.floor(this.width / total));
    if (!(target < total)) throw new Error(NO_ENCODER);
    return target;
  }

  move(start, count, total) {
    const unit = Math.floor(this.width / total);
    this.offset -= start * unit;
    for (this.width = count * unit; this.width < 2 ** 40; this.width *= 256)
      this.offset = this.offset * 256 + this.byte();
  }

  place(frequencies) {
    const total = frequencies.reduce((sum, count) => sum + count, 0), target = this.target(total);
    let place = 0, start = 0;
    while (start + frequencies[place] <= target) start += frequencies[place++];
    this.move(start, frequencies[place], total);
    return place;
  }

  uniform(size) {
    const found = this.target(size);
    this.move(found, 1, size);
    return found;
  }

  checkEnd(isCut) { // throw if the codes took too many bytes, or left more than one, unless others were left out
    const left = this.payload.length - (this.at - 6);
    if (left < 0 || (left > 1 && !isCut)) throw new Error(NO_ENCODER);
  }
}

function readEnds(body, numbers) { // numbers in ones, each with a zero behind it, up to the end of a byte
  const found = [0];
  while (found.length <= numbers) {
    const [byte] = body.take(1);
    for (let bit = 128; bit && found.length <= numbers; bit >>= 1) {
      if (byte & bit) found[found.length - 1]++;
      else found.push(0);
    }
  }
  return found;
}

class Adaptive { // coder 1
  constructor(body, sizes, codes, hasEnds, varying, network) {
    // ends are for programs that leave out codebooks; the first number says how many were left out, if they vary
    const ends = hasEnds ? readEnds(body, sizes.length - 1 + varying) : [0];
    this.most = sizes.length + (varying ? ends[0] : 0); // codebooks of a frame, with those left out
    Object.assign(this, { decoder: new RangeDecoder(body.data.subarray(body.at)), isCut: hasEnds, varying });
    Object.assign(this, { sizes, codes, network, counts: new Map() }); // of [no, yes], which all rows share
  }

  at(row, codebook, frame) { return this.codes[row]?.[codebook]?.[frame] ?? -1; } // -1 where there is no code

  read() { // fill in the codes
    const rows = this.codes.length, places = rows * this.codes[0][0].length;
    const numbers = this.varying ? this.readCounts(places) : Array(places).fill(this.sizes.length);
    for (const codebook of this.sizes.keys()) {
      const known = this.codes.map(() => ({ follow: new Map(), recent: new Map() })); // by each row
      for (let place = 0; place < places; place++) {
        if (codebook >= numbers[place]) continue;
        const row = place % rows, frame = Math.floor(place / rows), { follow, recent } = known[row];
        const lower = codebook ? this.at(row, codebook - 1, frame) : this.at(row, 0, frame - 1);
        const code = this.code({ row, codebook, frame, follow: follow.get(lower) ?? -1, recent });
        this.codes[row][codebook][frame] = code;
        follow.set(lower, code);
        recent.set(code, (recent.get(code) ?? 0) + 1);
        if (recent.size > 64) recent.delete(recent.keys().next().value);
      }
    }
    this.decoder.checkEnd(this.isCut);
  }

  readCounts(places) { // the numbers of codebooks, frame by frame and, within a frame, row by row
    const times = Array(this.most).fill(1), found = [];
    while (found.length < places) {
      let number = found[found.length - this.codes.length];
      if (number === undefined || !this.ask("count")) {
        const others = times.map((_, at) => at + 1).filter((other) => other !== number);
        number = others[this.decoder.place(others.map((other) => times[other - 1]))];
        times[number - 1]++;
      }
      found.push(number);
    }
    return found;
  }

  code({ row, codebook, frame, follow, recent }) {
    const higher = codebook > 0, lower = this.at(row, codebook - 1, frame), before = this.at(row, codebook, frame - 1);
    const sameRow = lower === this.at(row - 1, codebook - 1, frame);
    const sameFrame = lower === this.at(row, codebook - 1, frame - 1);
    const candidates = [[this.at(row - 1, codebook, frame), `row ${higher} ${sameRow}`],
      [before, `repeat ${higher} ${sameFrame} ${before === this.at(row, codebook, frame - 2)}`],
      [follow, `follow ${higher}`]], refused = new Set([-1]);
    for (const [candidate, question] of candidates) {
      if (refused.has(candidate)) continue;
      if (this.ask(question)) return candidate;
      refused.add(candidate);
    }
    const left = [...recent.keys()].filter((key) => !refused.has(key));
    if (left.length && this.ask(`recent ${higher}`))
      return left[this.decoder.place(left.map((key) => recent.get(key)))];
    return this.decoder.uniform(this.sizes[codebook]);
  }

  ask(question, start = [1, 1]) {
    const counts = [...(this.counts.get(question) ?? start)], answer = this.decoder.place(counts);
    counts[answer] += 2;
    const isFull = counts[0] + counts[1] > 255;
    this.counts.set(question, isFull ? counts.map((count) => Math.ceil(count / 2)) : counts);
    return answer === 1;
  }
}

class Model extends Adaptive { // coder 2
  code({ row, codebook, frame, follow }) {
    const { network } = this, before = this.at(row, codebook, frame - 1), refused = [];
    let run = 1;
    while (run < 3 && this.at(row, codebook, frame - 1 - run) === before) run++;
    for (const [kind, otherRow, otherFrame] of [["row", row - 1, frame], ["repeat", row, frame - 1]]) {
      const candidate = kind === "repeat" && run < 3 ? -1 : this.at(otherRow, codebook, otherFrame);
      if (candidate < 0 || refused.includes(candidate)) continue;
      const same = this.at(row, codebook - 1, frame) === this.at(otherRow, codebook - 1, otherFrame);
      const start = codebook === 0 ? [1, 1] : same ? [1, 8] : [8, 1];
      if (this.ask(`${kind} ${codebook} ${same}`, start)) return candidate;
      refused.push(candidate);
    }
    const frequencies = network.frequencies(codebook, this.context(row, codebook, frame));
    const past = this.codes[row][codebook].slice(Math.max(0, frame - 64), frame);
    const gains = network.gains[codebook], steps = new Map();
    const add = (code, number) => steps.set(code, (steps.get(code) ?? 0) + number);
    for (const code of new Set(past)) add(code, gains[Math.min(past.filter((one) => one === code).length, 3) - 1]);
    if (run < 3) add(before, gains[2 + run]);
    add(follow, gains[5]);
    steps.delete(-1);
    for (const [code, number] of steps) frequencies[code] = Math.floor(frequencies[code] * network.grow[number] / 256);
    for (const code of refused) frequencies[code] = 0;
    return this.decoder.place(frequencies);
  }

  context(row, codebook, frame) {
    const { network } = this;
    const vector = (of, offset) => network.vector(of, this.at(row, of, frame + offset));
    const vectors = (of, ...offsets) => offsets.map((offset) => vector(of, offset));
    const sum = (all, gain) => all[0].map((_, at) => all.reduce((sum, each, n) => sum + gain(n) * each[at], 0));
    const rest = (offset, first = 1) => {
      const lower = Array.from({ length: codebook - 1 }, (_, at) => vector(at + 1, offset));
      return scaled(sum(lower, (at) => (at + 1 < first ? 0 : network.gain[at + 1])), 5);
    };
    const parts = codebook ? vectors(0, -2, -1, 0, 1, 2)
      : [...vectors(0, -1, -2, -3), scaled(sum(vectors(0, -4, -5, -6, -7, -8), () => 1), 2)];
    if (codebook >= 2) {
      const rests = [-2, -1, 1, 2].map((offset) => rest(offset)), [second] = vectors(1, 0);
      parts.push(...rests, rests[1].map(Math.abs), rests[2].map(Math.abs), second, second.map(Math.abs), rest(0, 2));
    }
    if (codebook === 1 || codebook === 2) parts.push(...vectors(codebook, -1, -2));
    return Int32Array.from(parts.flatMap((part) => [...part]));
  }
}

const shifted = (number, shift) => Math.floor(number / 2 ** shift + 0.5);

const limited = (number) => Math.min(Math.max(number, -127), 127);

const scaled = (sums, shift) => sums.map((sum) => limited(shifted(sum, shift)));

const DTYPES = { I8: ["int8", 1, "getInt8"], I32: ["int32", 4, "getInt32"] };

export class Network { // its tensors as lists of rows, or rows alone for tensors of one dimension
  static async from(file) {
    const size = Number(view(file).getBigUint64(0, true)), data = file.subarray(8 + size), network = new Network();
    const { __metadata__, ...entries } = JSON.parse(text(file.subarray(8, 8 + size))), hashed = [];
    for (const name of Object.keys(entries).sort()) {
      const { dtype, shape, data_offsets: [first, end] } = entries[name], [label, bytes, get] = DTYPES[dtype];
      const raw = data.subarray(first, end), of = view(raw);
      hashed.push(new TextEncoder().encode(`["${name}", "${label}", [${shape.join(", ")}]]`), raw);
      const numbers = Int32Array.from({ length: raw.length / bytes }, (_, at) => of[get](at * bytes, true));
      const [count, length] = shape, row = (_, at) => numbers.subarray(at * length, (at + 1) * length);
      network[name] = shape.length === 2 ? Array.from({ length: count }, row) : numbers;
    }
    const digest = await crypto.subtle.digest("SHA-256", await new Blob(hashed).arrayBuffer());
    network.digest = hex(new Uint8Array(digest)).slice(0, 8);
    return network;
  }

  vector(codebook, code) {
    const vectors = this[`input.${codebook}`];
    return vectors[code] ?? vectors[0].map(() => 0);
  }

  layer(name, codebook, x) {
    const matrix = this[`${name}.${codebook}`], bias = this[`${name}_bias.${codebook}`];
    const shift = this.shift[codebook][["hidden", "weight", "output"].indexOf(name)];
    return bias.map((sum, at) => {
      const row = matrix[at];
      for (let n = 0; n < x.length; n++) sum += row[n] * x[n];
      return shifted(sum, shift);
    });
  }

  frequencies(codebook, context) {
    const hidden = this.layer("hidden", codebook, context).map((sum) => Math.max(0, limited(sum)));
    const logits = this.layer("output", codebook, this.layer("weight", codebook, hidden).map(limited));
    const most = Math.max(...logits), { exp } = this;
    return Array.from(logits, (logit) => exp[Math.min(most - logit, exp.length - 1)]);
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
