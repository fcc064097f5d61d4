// A codec exported by `codec export --onnx`, in ONNX Runtime: encoder.onnx and decoder.onnx, each one step whose state
// is explicit, and shared.bin, the weights of both. For a browser's worker and for node; see docs/export.md.

const ARRAYS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array };

const BYTES = { 1: 8, 5: 4 }; // of the wire types of protocol buffers with a fixed size

/** The JSON in the metadata entry `codec` of an ONNX file: field 14 of a ModelProto, of pairs of key (1) and value (2). */
export function describe(graph, name) {
  const text = (bytes) => new TextDecoder().decode(bytes);
  for (const [field, content] of fields(graph, name)) {
    if (field !== 14) continue;
    const entry = new Map(fields(content, name));
    if (text(entry.get(1)) === "codec") return JSON.parse(text(entry.get(2)));
  }
  throw new Error(`${name} has no metadata of a codec: write the folder again with codec page`);
}

function* fields(bytes, name) {
  let at = 0;
  const number = () => { // products instead of shifts, because shifts have 32 bits
    for (let value = 0, unit = 1; ; unit *= 128) {
      if (at >= bytes.length) throw new Error(`${name} is truncated or not an ONNX file: write the folder again`);
      const byte = bytes[at++];
      value += (byte & 127) * unit;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = number(), type = key % 8, size = type === 2 ? number() : BYTES[type];
    if (type === 0) number();
    else if (size === undefined || at + size > bytes.length)
      throw new Error(`${name} is truncated or not an ONNX file: write the folder again`);
    else {
      if (type === 2) yield [Math.floor(key / 8), bytes.subarray(at, at + size)];
      at += size;
    }
  }
}

async function sha256(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The content of a file that `codec page` has packed: gzip of the bytes at even places and then of those at odd ones.
 * A server may have undone the gzip.
 */
async function unpacked(bytes, name) {
  const isZipped = bytes[0] === 0x1f && bytes[1] === 0x8b;
  const stream = isZipped ? new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")) : new Blob([bytes]);
  const halves = new Uint8Array(await new Response(stream).arrayBuffer().catch(() => {
    throw new Error(`${name} is damaged: write the folder again with codec page`);
  }));
  const found = new Uint8Array(halves.length), odd = (halves.length + 1) >> 1;
  for (let at = 0; at < found.length; at++) found[at] = halves[at & 1 ? odd + (at >> 1) : at >> 1];
  return found;
}

/** One of the two graphs. */
class Graph {
  static async load(ort, bytes, shared, name, executionProviders) {
    const description = describe(bytes, name);
    if (description.shared?.sha256 !== (await sha256(shared)))
      throw new Error(`${name} and shared.bin are of different models: write the folder again with codec page`);
    const externalData = [{ path: description.shared.file, data: shared }];
    const options = { executionProviders, graphOptimizationLevel: "all", externalData };
    return new Graph(ort, await ort.InferenceSession.create(bytes, options), description);
  }

  constructor(ort, session, description) { Object.assign(this, { ort, session, description }); }

  tensor(type, data, dims) { return new this.ort.Tensor(type, data, dims); }

  /** A function from the inputs of a chunk to its output, for a new signal of `rows` rows. */
  stream(rows) {
    const [output, ...after] = this.session.outputNames, state = {};
    for (const { name, shape, dtype } of this.description.states) {
      const dims = [rows, ...shape.slice(1)];
      state[name] = this.tensor(dtype, new ARRAYS[dtype](dims.reduce((size, axis) => size * axis, 1)), dims);
    }
    const names = Object.keys(state);
    return async (inputs) => {
      const found = await this.session.run({ ...inputs, ...state });
      names.forEach((name, at) => (state[name] = found[after[at]]));
      return found[output];
    };
  }
}

/** What `codec page` packs: encoder.onnx, decoder.onnx and shared.bin. */
export const FILES = ["encoder.gz", "decoder.gz", "shared.gz"];

/**
 * Encoder and decoder of one model. Audio is Float32Array [rows, time]; codes are Int32Array [rows, codebooks, frames]
 * of all codebooks of the model, -1 in the ones that a frame does not have.
 */
export class Codec {
  /** From the contents of `FILES`. */
  static async load(ort, packed, executionProviders = ["wasm"]) {
    const [encoder, decoder, shared] = await Promise.all(packed.map((bytes, at) => unpacked(bytes, FILES[at])));
    const graphs = [];
    for (const [name, bytes] of [["encoder.onnx", encoder], ["decoder.onnx", decoder]])
      graphs.push(await Graph.load(ort, bytes, shared, name, executionProviders));
    const [one, other] = graphs.map((graph) => graph.description);
    if (one.weights_hash !== other.weights_hash || one.num_codebooks !== other.num_codebooks)
      throw new Error("encoder.onnx and decoder.onnx are of different models: write the folder again with codec page");
    if (!graphs[0].session.inputNames.includes("num_codebooks"))
      throw new Error("encoder.onnx is of an older version: write the folder again with codec page");
    return new Codec(...graphs);
  }

  constructor(encoder, decoder) {
    Object.assign(this, { encoderGraph: encoder, decoderGraph: decoder, description: encoder.description });
    const { sample_rate, hop, decoder_delay, num_codebooks, codebook_sizes } = this.description;
    Object.assign(this, { sampleRate: sample_rate, hop, delay: decoder_delay, numCodebooks: num_codebooks });
    this.bits = codebook_sizes.map((size) => Math.ceil(Math.log2(size)));
  }

  /** Frames that hold `time` samples and flush the decoder's delay. */
  frames(time) { return time ? Math.ceil((time + this.delay) / this.hop) : 0; }

  /** Bit rate of the codes in bit/s, without a container. */
  bitrate(codebooks, rows = 1) {
    return (rows * this.bits.slice(0, codebooks).reduce((sum, bits) => sum + bits, 0) * this.sampleRate) / this.hop;
  }

  /** Free the memory of both graphs. */
  async release() {
    for (const { session } of [this.encoderGraph, this.decoderGraph]) await session.release();
  }

  /** An encoder of a signal: whole hops of audio to the codes of the first `codebooks` codebooks. */
  encoder(rows) {
    const graph = this.encoderGraph, step = graph.stream(rows);
    return async (samples, codebooks = this.numCodebooks) => {
      const audio = graph.tensor("float32", samples, [rows, 1, samples.length / rows]);
      const { data } = await step({ audio, num_codebooks: graph.tensor("int64", [BigInt(codebooks)], []) });
      return Int32Array.from(data, Number);
    };
  }

  /** A decoder of a signal: codes to audio, of which the first `delay` samples precede the signal. */
  decoder(rows) {
    const graph = this.decoderGraph, step = graph.stream(rows);
    return async (codes, codebooks = this.numCodebooks) => {
      const frames = codes.length / rows / this.numCodebooks;
      const used = BigInt64Array.from(codes, (code, at) => BigInt(Math.floor(at / frames) % this.numCodebooks < codebooks ? code : -1));
      return (await step({ codes: graph.tensor("int64", used, [rows, this.numCodebooks, frames]) })).data;
    };
  }
}
