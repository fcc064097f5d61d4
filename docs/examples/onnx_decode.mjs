// Decode a .codec file with a model exported by `codec export`, in plain JavaScript: onnxruntime-web alone.
//
//     codec export general-24k --onnx DIR
//     npm install onnxruntime-web
//     node docs/examples/onnx_decode.mjs DIR recording.codec restored.wav [NAME.entropy.safetensors]
//
// The last file is the network of entropy coding, which most files of shipped codecs need. The audio is at the model's
// sample rate. The variable ORT names a script of onnxruntime-web that is elsewhere, with its ort.wasm beside it.

import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { Network, read } from "./read_codec.mjs";

const SECONDS = 10; // of frames that are decoded at once; any other number gives the same
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

function refuse(text) {
  console.error(text);
  process.exit(1);
}

/** The graph, and the JSON of its metadata, which ends the file. */
async function load(folder) {
  try {
    const graph = readFileSync(`${folder}/decoder.onnx`), shared = readFileSync(`${folder}/shared.bin`);
    const model = JSON.parse(graph.subarray(graph.lastIndexOf('{"format"')));
    if (createHash("sha256").update(shared).digest("hex") !== model.shared.sha256) throw new Error("shared.bin is of another model");
    const externalData = [{ path: model.shared.file, data: shared }];
    return [await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData }), model];
  } catch ({ message }) {
    refuse(`${folder}/decoder.onnx is damaged or not of codec export (${message.split("\n")[0]})`);
  }
}

/** Header and packets of a .codec file. */
async function readFile(source, network) {
  try {
    return read(new Uint8Array(readFileSync(source)), network && (await Network.from(new Uint8Array(readFileSync(network)))));
  } catch ({ message }) {
    refuse(`${source} cannot be read (${message})${message.startsWith("codes by") ? ": give its file NAME.entropy.safetensors" : ""}`);
  }
}

/** Audio of rows [rows][time] of a file. */
async function decode(session, model, { header, packets }) {
  const frames = packets.reduce((sum, packet) => sum + packet.frames, 0), step = Math.max(1, Math.floor((SECONDS * model.sample_rate) / model.hop));
  const codes = Array.from({ length: header.rows }, () => Array.from({ length: model.num_codebooks }, () => new BigInt64Array(frames).fill(-1n)));
  let at = 0;
  for (const packet of packets) {
    packet.codes.forEach((row, number) => row.forEach((series, codebook) => codes[number][codebook].set(BigInt64Array.from(series, BigInt), at)));
    at += packet.frames;
  }
  const audio = codes.map(() => new Float32Array(frames * model.hop)), state = {};
  for (const { name, shape, dtype } of model.states) {
    const dims = [header.rows, ...shape.slice(1)];
    state[name] = new ort.Tensor(dtype, new ARRAYS[dtype](dims.reduce((size, axis) => size * axis, 1)), dims);
  }
  for (let first = 0; first < frames; first += step) {
    const chunk = codes.flat().map((series) => series.subarray(first, first + step)), size = chunk[0].length;
    const values = new BigInt64Array(chunk.length * size);
    chunk.forEach((series, place) => values.set(series, place * size));
    const found = await session.run({ codes: new ort.Tensor("int64", values, [header.rows, model.num_codebooks, size]), ...state });
    for (const name of Object.keys(state)) state[name] = found[name.replace("state", "next")];
    audio.forEach((samples, row) => samples.set(found.audio.data.subarray(row * size * model.hop, (row + 1) * size * model.hop), first * model.hop));
  }
  return audio;
}

/** Channels of rows, by the matrix of the file if it has one, without the decoder's delay and what follows the signal. */
function channels(rows, header, model) {
  const mix = header.mix ?? rows.map((_, row) => rows.map((_, other) => Number(row === other)));
  const time = Math.ceil((header.time * model.sample_rate) / header.source_rate);
  return mix.slice(0, header.channels).map((weights) => Float32Array.from({ length: time }, (_, at) =>
    weights.reduce((sum, weight, row) => sum + weight * (rows[row][model.decoder_delay + at] ?? 0), 0)));
}

/** A WAV file of 16 bits. */
function wav(audio, rate) {
  const size = 2 * audio.length * audio[0].length, file = Buffer.alloc(44 + size);
  file.write("RIFF"), file.writeUInt32LE(36 + size, 4), file.write("WAVEfmt ", 8), file.writeUInt32LE(16, 16);
  file.writeUInt16LE(1, 20), file.writeUInt16LE(audio.length, 22), file.writeUInt32LE(rate, 24);
  file.writeUInt32LE(2 * audio.length * rate, 28), file.writeUInt16LE(2 * audio.length, 32), file.writeUInt16LE(16, 34);
  file.write("data", 36), file.writeUInt32LE(size, 40);
  audio.forEach((samples, channel) => samples.forEach((sample, at) =>
    file.writeInt16LE(Math.round(32767 * Math.max(-1, Math.min(1, sample))), 44 + 2 * (at * audio.length + channel))));
  return file;
}

const [folder, source, target, network] = process.argv.slice(2), script = process.env.ORT;
const ort = await import(script ?? "onnxruntime-web");
ort.env.wasm.numThreads = 1;
const program = script && new URL("ort.wasm", script);
if (program && existsSync(program)) ort.env.wasm.wasmBinary = readFileSync(program);
const [session, model] = await load(folder);
const file = await readFile(source, network);
if (file.header.weights_hash !== model.weights_hash)
  refuse(`${source} was made by ${file.header.model} (weights ${file.header.weights_hash.slice(0, 12)}), and ${folder} has weights ${model.weights_hash.slice(0, 12)}: export the model that made the file`);
writeFileSync(target, wav(channels(await decode(session, model, file), file.header, model), model.sample_rate));
