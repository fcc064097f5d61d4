// Read a .codec file of version 2 in plain JavaScript, in a browser or in node:
//
//     import { read } from "./read_codec.mjs";
//     const { header, packets } = read(new Uint8Array(await file.arrayBuffer()));
//
//     node docs/examples/read_codec.mjs recording.codec
//
// It was written from docs/file-format.md. It throws at the first damage, and reads payload coder 0 alone.

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
  header.rows = header.channels;
  while (fields.at < fields.data.length) {
    const tag = fields.number(), content = new Bytes(fields.sized());
    if (tag === 1) header.sample_format = text(content.data);
    if (tag === 2) header.source = { size: content.number(), checksum: hex(content.take(8)) };
    if (tag === 4) {
      const coded = (header.rows = content.number()), row = () => Array.from({ length: coded }, () => number(content));
      header.mix = Array.from({ length: header.channels }, row);
    }
  }
  header.rows = Math.ceil(header.rows / header.model_channels);
  return header;
}

function readCodes(body, header) {
  const [first, frames, codebooks] = [body.number(), body.number(), body.number()], [coder] = body.take(1);
  if (coder) throw new Error(`codes by coder ${coder}`);
  const packet = { first, frames };
  if (header.segment_frames) {
    const row = () => Array.from({ length: header.rows }, () => number(body));
    packet.scale = Array.from({ length: Math.ceil(frames / header.segment_frames) }, row);
  }
  let bits = 0, pending = 0; // at most 24 + 7 bits
  const code = (width) => {
    for (; pending < width; pending += 8) bits = bits * 256 + body.take(1)[0];
    pending -= width;
    const found = Math.floor(bits / 2 ** pending);
    bits %= 2 ** pending;
    return found;
  };
  const widths = header.codebook_sizes.map((size) => Math.ceil(Math.log2(size)));
  const empty = () => Array.from({ length: codebooks }, () => []);
  packet.codes = Array.from({ length: header.rows }, empty);
  for (let frame = 0; frame < frames; frame++)
    for (const row of packet.codes) row.forEach((codes, codebook) => codes.push(code(widths[codebook])));
  return packet;
}

export function read(data) {
  const file = new Bytes(data), header = readHeader(file), packets = [];
  for (;;) {
    const start = file.at;
    if (!isEqual(file.take(2), [0xf5, 0xc3])) throw new Error(`damaged at byte ${start}`);
    const [kind] = file.take(1), body = new Bytes(file.sized());
    file.check(start);
    if (kind === 0) packets.push(readCodes(body, header));
    if (kind === 255) {
      [header.time, header.frames] = [body.number(), body.number()];
      return { header, packets };
    }
  }
}

if (globalThis.process?.argv[1]?.endsWith("read_codec.mjs")) {
  const { readFileSync } = await import("node:fs");
  console.log(JSON.stringify(read(new Uint8Array(readFileSync(process.argv[2])))));
}
