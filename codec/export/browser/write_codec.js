// Write codes as a .codec file of version 2, by docs/file-format.md: payload coder 0, one packet per second.

const PACKETS_PER_ENTRY = 16; // of the index
const MAX_CODES = 2 ** 20; // in a packet
const SAMPLE_FORMAT = 1; // a tagged field, empty because the format is not known
const COPY_WITHIN = 10; // the end has a copy of the header if the file before it is this number of times as long

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

const crc32 = (bytes) => ~bytes.reduce((crc, byte) => CRC[(crc ^ byte) & 255] ^ (crc >>> 8), ~0) >>> 0;

const little = (number, size) => Array.from({ length: size }, (_, byte) => Math.floor(number / 256 ** byte) % 256);

function varint(number) { // LEB128; quotients instead of shifts, because shifts have 32 bits
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) + 128);
  return [...bytes, number];
}

const sized = (bytes) => [...varint(bytes.length), ...bytes];

const text = (string) => sized(new TextEncoder().encode(string));

const sealed = (bytes) => [...bytes, ...little(crc32(bytes), 4)];

const packet = (kind, body) => sealed([0xf5, 0xc3, kind, ...sized(body)]);

function runs(sizes) {
  const found = [];
  for (const size of sizes) found.at(-1)?.[1] === size ? found.at(-1)[0]++ : found.push([1, size]);
  return [found.length, ...found.flat()];
}

/** The codes [rows, codebooks, frames] of frames `first` to `last` in the widths of their codebooks, frame by frame. */
function packed({ codes, rows, stride, frames }, widths, first, last) {
  const bytes = [];
  let bits = 0, pending = 0;
  for (let frame = first; frame < last; frame++)
    for (let row = 0; row < rows; row++)
      widths.forEach((width, codebook) => {
        bits = bits * 2 ** width + codes[(row * stride + codebook) * frames + frame]; // at most 7 + 24 bits
        for (pending += width; pending >= 8; bits %= 2 ** pending) bytes.push(Math.floor(bits / 2 ** (pending -= 8)));
      });
  return pending ? [...bytes, bits * 2 ** (8 - pending)] : bytes;
}

/**
 * The file as a Uint8Array. `model` is the metadata of the exported model; `codes` is an Int32Array
 * [rows, model.num_codebooks, frames], of which the first `codebooks` are written; `time` counts samples.
 */
export function write(model, codes, { rows, codebooks, time }) {
  const sizes = model.codebook_sizes.slice(0, codebooks), widths = sizes.map((size) => Math.ceil(Math.log2(size)));
  const stride = model.num_codebooks, frames = codes.length / rows / stride;
  const second = Math.max(1, Math.round(model.sample_rate / model.hop));
  const perPacket = Math.min(second, Math.floor(MAX_CODES / (rows * codebooks)));
  const numbers = [model.sample_rate, rows, 0, model.sample_rate, model.hop, model.decoder_delay, 1, 0, perPacket];
  const hash = model.weights_hash.match(/../g).map((byte) => parseInt(byte, 16));
  const fields = [...hash, ...text(model.family), ...text(model.model ?? ""), ...[...numbers, ...runs(sizes), SAMPLE_FORMAT, 0].flatMap(varint)];
  const parts = [sealed([0x89, 0x43, 0x44, 0x43, 0x0d, 0x0a, 0x1a, 0x0a, 2, 0, ...little(fields.length, 2), ...fields])];
  let size = parts[0].length, packets = 0, before = [0, 0];
  const entries = [];
  for (let first = 0; first < frames; first += perPacket, packets++) {
    const last = Math.min(frames, first + perPacket);
    if (packets && packets % PACKETS_PER_ENTRY === 0) {
      entries.push(first - before[0], size - before[1]);
      before = [first, size];
    }
    const payload = packed({ codes, rows, stride, frames }, widths, first, last);
    parts.push(packet(0, [...[first, last - first, codebooks].flatMap(varint), ...payload]));
    size += parts.at(-1).length;
  }
  const copy = COPY_WITHIN * fields.length <= size ? fields : [];
  const end = packet(255, [...[time, frames, size, entries.length / 2, ...entries].flatMap(varint), ...sized(copy)]);
  parts.push(end, little(end.length, 4));
  return Uint8Array.from(parts.flat());
}
