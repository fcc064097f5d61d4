// The codec of a page in node: node run_page.mjs PAGE FOLDER ROWS FRAMES CODEBOOKS
//
// FOLDER/audio.f32 [rows, time] -> codes.i32 [rows, codebooks, frames] in chunks of FRAMES frames, their decoding
// decoded.f32 [rows, time] with the first CODEBOOKS codebooks, and the same codes as file.codec, read back.

import { deepStrictEqual } from "node:assert";
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, folder, ...numbers] = process.argv.slice(2), [rows, chunk, codebooks] = numbers.map(Number);
const load = (name) => import(pathToFileURL(`${page}/${name}`));
const ort = await load("ort.js"), { Codec, FILES } = await load("model.js");
const { read } = await load("read_codec.js"), { write } = await load("write_codec.js");
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: readFileSync(`${page}/ort.wasm`) });
const codec = await Codec.load(ort, FILES.map((name) => readFileSync(`${page}/${name}`)));

/** Columns `first` to `last` of an array [rows, columns]. */
function columns(array, rows, first, last) {
  const size = array.length / rows, found = new array.constructor(rows * (last - first));
  for (let row = 0; row < rows; row++) found.set(array.subarray(row * size + first, row * size + last), row * (last - first));
  return found;
}

/** Arrays [rows, columns], joined column by column. */
function joined(parts, rows) {
  const found = new parts[0].constructor(parts.reduce((sum, part) => sum + part.length, 0)), size = found.length / rows;
  let first = 0;
  for (const part of parts) {
    for (let row = 0; row < rows; row++)
      found.set(part.subarray((row * part.length) / rows, ((row + 1) * part.length) / rows), row * size + first);
    first += part.length / rows;
  }
  return found;
}

const raw = readFileSync(`${folder}/audio.f32`);
const audio = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length));
const time = audio.length / rows, frames = time / codec.hop, series = rows * codec.numCodebooks;
const encode = codec.encoder(rows), decode = codec.decoder(rows), parts = [], sound = [];
for (let first = 0; first < frames; first += chunk)
  parts.push(await encode(columns(audio, rows, first * codec.hop, Math.min(frames, first + chunk) * codec.hop)));
const codes = joined(parts, series);
for (let first = 0; first < frames; first += chunk)
  sound.push(await decode(columns(codes, series, first, Math.min(frames, first + chunk)), codebooks));
const file = write(codec.description, codes, { rows, codebooks, time: time - codec.delay });
const { packets } = read(file), perRow = codes.length / rows;
packets.forEach(({ first, codes: found }) => found.forEach((row, at) => row.forEach((those, codebook) =>
  deepStrictEqual(those, Array.from(codes.slice(at * perRow + codebook * frames + first).slice(0, those.length))))));
writeFileSync(`${folder}/codes.i32`, codes);
writeFileSync(`${folder}/decoded.f32`, joined(sound, rows));
writeFileSync(`${folder}/file.codec`, file);
