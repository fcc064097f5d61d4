// Speed of a page's codec in node: node tools/bench_page.mjs PAGE [SECONDS]
//
// PAGE is a folder written by codec page. The WebAssembly is that of the page, on one thread; the signal is noise, for
// SECONDS (10 by default), a frame at a time as with the microphone, then 50 frames at a time. Medians and 99th
// percentiles of the milliseconds per call; the real-time factor is seconds of computing per second of audio.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const WARM_UP = 100; // frames, until V8 has compiled the WebAssembly that runs

const [page, seconds = 10] = process.argv.slice(2);
if (!page) {
  console.error("usage: node tools/bench_page.mjs PAGE [SECONDS]");
  process.exit(2);
}
const load = (name) => import(pathToFileURL(resolve(page, name)));
const ort = await load("ort.js"), { Codec, FILES } = await load("model.js");
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: readFileSync(resolve(page, "ort.wasm")) });
const codec = await Codec.load(ort, FILES.map((name) => readFileSync(resolve(page, name))));
const frameSeconds = codec.hop / codec.sampleRate;

async function timed(work) {
  const start = performance.now(), result = await work();
  return [result, performance.now() - start];
}

function quantile(values, share) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

async function measure(frames, calls, warmUp) {
  const encode = codec.encoder(1), decode = codec.decoder(1), times = { encode: [], decode: [] };
  for (let call = 0; call < warmUp + calls; call++) {
    const audio = Float32Array.from({ length: frames * codec.hop }, () => 0.2 * (Math.random() - 0.5));
    const [codes, encoding] = await timed(() => encode(audio));
    const [, decoding] = await timed(() => decode(codes));
    if (call >= warmUp) times.encode.push(encoding), times.decode.push(decoding);
  }
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const ms = (values) => `${quantile(values, 0.5).toFixed(2)} (99 %: ${quantile(values, 0.99).toFixed(2)})`;
  const factor = (sum(times.encode) + sum(times.decode)) / 1000 / (calls * frames * frameSeconds);
  console.log(`${frames} frame${frames > 1 ? "s" : ""} a call: encode ${ms(times.encode)} ms, decode ${ms(times.decode)} ms, ` +
    `real-time factor ${factor.toFixed(3)}`);
}

console.log(`${codec.description.model ?? "a model"}, frames of ${(1000 * frameSeconds).toFixed(1)} ms, node ${process.version}`);
await measure(1, Math.round(seconds / frameSeconds), WARM_UP);
await measure(50, Math.max(1, Math.round(seconds / frameSeconds / 50)), 1);
