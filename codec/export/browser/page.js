// The page: buttons, the graph of audio nodes, and what is shown. worker.js encodes and decodes, audio.js plays.

import { Meter, Spectrogram } from "./picture.js";

const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const MARGIN = 0.04; // seconds in the queue before the microphone plays
const FILE_MARGIN = 0.3; // of a recording, whose delay does not matter
const MOST_MARGIN = 0.3;

const byId = (id) => document.getElementById(id);
const plain = (bits) => `${(bits / 1000).toFixed(bits < 9950 ? 2 : 1)} kbit/s`;
const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

let worker, model, context, current; // current: what plays
let turn = 0; // counts what was asked to play, because a file or a permission may come after the next one

function say(text) { byId("status").textContent = text; }

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function start() {
  const newer = "use Chrome 91, Firefox 114, Safari 16.4 or a newer one, without a mode that blocks parts of it.";
  if (!globalThis.WebAssembly?.validate(Uint8Array.from(SIMD))) return refuse(`This browser has no WebAssembly SIMD: ${newer}`);
  if (!globalThis.DecompressionStream) return refuse(`This browser has no DecompressionStream: ${newer}`);
  if (!globalThis.AudioWorkletNode)
    return refuse(isSecureContext ? "This browser has no AudioWorklet: use a newer one." :
      "Browsers process sound only on https and on localhost: open this page as http://localhost.");
  say("Loading the model…");
  byId("progress").hidden = false;
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => received(data);
  worker.onerror = () => refuse("A file of this page is missing or damaged: write the folder again with codec page.");
  worker.postMessage({ load: true });
}

function refuse(text) {
  say("");
  byId("progress").hidden = true;
  complain(text);
}

function received(message) {
  if (message.failed) model ? failed(message.failed) : refuse(sentence(message.failed));
  if (message.total && message.loaded) Object.assign(byId("progress"), { max: message.total, value: message.loaded });
  if (message.ready) ready(message.ready);
  if (message.backend) changed(message);
  if (message.made) made(message);
  if (message.saved) download(message.saved, message.kind);
}

const sentence = (text) => (text.endsWith(".") ? text : `${text}.`);

function failed(text) {
  end();
  say("");
  complain(sentence(text));
}

function ready(description) {
  model = description;
  byId("loading").querySelector("progress").hidden = true;
  say("Ready.");
  byId("model").textContent = model.model ?? "";
  Object.assign(byId("codebooks"), { max: model.num_codebooks, value: model.num_codebooks, disabled: false });
  for (const id of ["microphone", "open"]) byId(id).disabled = false;
  byId("about").textContent = `${model.family} codec ${model.model ?? ""} at ${model.sample_rate / 1000} kHz, ` +
    `${model.num_codebooks} codebooks, ${Math.round(model.sample_rate / model.hop)} frames per second; weights ${model.weights_hash.slice(0, 12)}`;
  showRate();
  offerGPU();
}

/** Let the codec run on a GPU, if the browser has one. It is not the default, because a frame has a thousand small operations. */
async function offerGPU() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  byId("backend").disabled = !adapter;
  byId("backend").title = adapter ? "" : "This browser has no GPU for WebGPU.";
}

// What is chosen

function chooseBackend({ target }) {
  clear();
  for (const id of ["microphone", "open", "backend"]) byId(id).disabled = true;
  byId("progress").hidden = false;
  say("Loading the codec…");
  worker.postMessage({ backend: target.value });
}

function changed({ backend, cost, reason }) {
  for (const id of ["microphone", "open", "backend"]) byId(id).disabled = false;
  byId("progress").hidden = true;
  byId("backend").value = backend;
  const name = backend === "wasm" ? "CPU" : "GPU";
  say(reason ? "The codec runs on the CPU." : `The codec runs on the ${name}: ${(1000 * cost).toFixed(1)} ms for a frame.`);
  complain(reason ? `The GPU cannot be used (${reason}).` : "");
}

const codebooks = () => Number(byId("codebooks").value);

const bitrate = (count, rows = 1) =>
  (rows * model.codebook_sizes.slice(0, count).reduce((sum, size) => sum + Math.ceil(Math.log2(size)), 0) * model.sample_rate) / model.hop;

function showRate() {
  const count = codebooks(), bits = bitrate(count);
  const ratio = Math.round((16 * model.sample_rate) / bits);
  byId("rate").textContent = `${count} of ${byId("codebooks").max}: ${plain(bits)} per channel, ${ratio} times less than 16‑bit samples`;
  byId("codebooks").ariaValueText = `${count} codebooks, ${plain(bits)}`;
  byId("bitrate").textContent = plain(bitrate(count, current?.rows));
}

function choose() {
  worker.postMessage({ codebooks: codebooks() });
  showRate();
}

function chooseOutput() {
  if (!current) return;
  const chosen = document.querySelector("[name=listen]:checked").value;
  for (const name of ["decoded", "original"])
    current.gains[name].gain.setTargetAtTime(Number(name === chosen), context.currentTime, 0.01);
}

// Sound

async function openContext() {
  context ??= new AudioContext({ sampleRate: model.sample_rate, latencyHint: "interactive" });
  openContext.loaded ??= context.audioWorklet.addModule("audio.js");
  const resumed = Promise.race([context.resume(), new Promise((wait) => setTimeout(wait, 300))]); // dropping is not a click
  await Promise.all([openContext.loaded, resumed]);
}

/** Put the audio thread between a source and the loudspeaker; returns its port for the worker. */
function connect(name, { live, hasOriginal = true }) {
  end();
  const hop = model.hop, samples = (seconds) => Math.round(seconds * model.sample_rate);
  const options = { hop, live, margin: samples(live ? MARGIN : FILE_MARGIN), most: samples(live ? MOST_MARGIN : 2 * FILE_MARGIN) };
  const node = new AudioWorkletNode(context, "loop", {
    numberOfInputs: 1, numberOfOutputs: 2, outputChannelCount: [2, 2], channelCount: 1, channelCountMode: "explicit", processorOptions: options,
  });
  const { port1, port2 } = new MessageChannel();
  node.port.postMessage({ worker: port1 }, [port1]);
  node.port.onmessage = ({ data }) => played(data);
  current = { node, live, gains: {}, views: [], rows: 1, underruns: 0, time: 0 };
  ["decoded", "original"].forEach((signal, output) => view(signal, output));
  if (!hasOriginal) document.querySelector("[value=decoded]").checked = true;
  chooseOutput();
  byId("source").textContent = name;
  for (const id of ["pause", "stop"]) byId(id).disabled = false;
  byId("listen").disabled = !hasOriginal;
  byId("pause").textContent = "Pause";
  complain("");
  showRate(); // of one row, until the worker says how many there are
  requestAnimationFrame(draw);
  return port2;
}

function view(signal, output) {
  const analyzer = new AnalyserNode(context, { fftSize: 1024, smoothingTimeConstant: 0 }), gain = new GainNode(context, { gain: 0 });
  current.node.connect(analyzer, output).connect(gain).connect(context.destination);
  current.gains[signal] = gain;
  current.views.push(new Spectrogram(byId(signal), analyzer), new Meter(byId(`${signal}-level`), analyzer));
}

function draw() {
  if (!current) return;
  if (context.state === "running") current.views.forEach((part) => part.draw());
  requestAnimationFrame(draw);
}

function end() {
  if (!current) return;
  current.node.port.postMessage({ stop: true });
  current.stream?.getTracks().forEach((track) => track.stop());
  current.source?.disconnect();
  current.node.disconnect();
  Object.values(current.gains).forEach((gain) => gain.disconnect());
  current = undefined;
  for (const id of ["pause", "stop"]) byId(id).disabled = true;
  byId("microphone").ariaPressed = "false";
}

/** End what plays and drop its codes; returns whose turn it is. */
function clear() {
  end();
  worker.postMessage({ stop: true });
  for (const id of ["save-codec", "save-wav"]) byId(id).disabled = true;
  for (const id of ["size", "source"]) byId(id).textContent = "";
  offer(model.num_codebooks);
  return ++turn;
}

/** Let the slider go up to a number of codebooks; at its end, it stays at its end. */
function offer(count) {
  const slider = byId("codebooks");
  if (Number(slider.max) === count) return;
  const isLast = slider.value === slider.max;
  slider.max = count;
  if (isLast) slider.value = count;
  choose();
}

async function useMicrophone() {
  const mine = clear();
  let stream;
  try {
    await openContext();
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
    if (mine !== turn) return stream.getTracks().forEach((track) => track.stop());
    stream.getTracks()[0].onended = () => failed("The microphone was disconnected: connect it again, or open a file");
    const source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
    const port = connect("microphone", { live: true });
    worker.postMessage({ live: port }, [port]);
    source.connect(current.node);
    Object.assign(current, { stream, source });
    byId("microphone").ariaPressed = "true";
    say("The microphone runs.");
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    if (mine === turn) failed(microphoneProblem(error));
  }
}

function microphoneProblem({ name, message }) {
  if (name === "NotAllowedError") return "The microphone is blocked: allow it for this page in the browser's settings, or open a file";
  if (name === "NotFoundError") return "No microphone was found: connect one, or open a file";
  if (name === "NotReadableError") return "The microphone is used by another program: close it, or open a file";
  if (name === "NotSupportedError")
    return `This browser does not give the microphone at ${model.sample_rate / 1000} kHz: use Chrome, Edge or Safari, or open a file`;
  return `The microphone cannot be used (${message}): open a file`;
}

async function openFile(file) {
  const mine = clear();
  say(`Reading ${file.name}…`);
  try {
    const bytes = await file.arrayBuffer();
    await openContext();
    if (mine !== turn) return;
    if (isCodec(bytes)) return play(file.name, { codec: bytes, name: file.name }, [bytes]);
    const audio = await context.decodeAudioData(bytes);
    if (mine !== turn) return;
    const channels = Array.from({ length: audio.numberOfChannels }, (_, channel) => audio.getChannelData(channel).slice());
    play(file.name, { audio: channels }, channels.map((samples) => samples.buffer));
  } catch (error) {
    if (mine !== turn) return;
    failed(error.name === "EncodingError" ? `${file.name} is not audio that this browser reads: open a WAV, MP3, FLAC, Ogg or .codec file` :
      `${file.name} cannot be opened (${error.message})`);
  }
}

const isCodec = (bytes) => bytes.byteLength >= 4 && new DataView(bytes).getUint32(0) === 0x89434443;

function play(name, content, transfer) {
  const port = connect(name, { live: false, hasOriginal: !content.codec });
  worker.postMessage({ ...content, port }, [port, ...transfer]);
  say(context.state === "running" ? `Encoding ${name}…` : "Press Play.");
  if (context.state !== "running") byId("pause").textContent = "Play";
}

async function pause() {
  const isRunning = context.state === "running";
  await (isRunning ? context.suspend() : context.resume());
  byId("pause").textContent = isRunning ? "Play" : "Pause";
  say(isRunning ? "Paused." : "Playing.");
}

function stop() {
  end();
  say("Stopped.");
}

// What is reported

function played({ underruns, played, delay, ended, playing }) {
  if (!current) return;
  current.underruns = underruns;
  byId("underruns").textContent = underruns;
  const time = clock(played / model.sample_rate), total = current.total && clock(current.total);
  byId("position").textContent = total ? `${time} of ${total}` : time;
  const device = context.baseLatency + (context.outputLatency || 0);
  byId("delay").textContent = current.live && delay ? `${Math.round(1000 * (delay / model.sample_rate + device))} ms` : "–";
  byId("delay").title = current.live ? `${Math.round(1000 * device)} ms of it in the sound device` : "";
  if (playing && !current.hasPlayed) {
    current.hasPlayed = true;
    if (!current.live) say(`Playing ${byId("source").textContent}.`);
  }
  if (!ended) return;
  end();
  say("The end.");
}

function made({ made, total, cost, rows, time, available, skipped }) {
  const frame = model.hop / model.sample_rate, sum = cost.encode + cost.decode;
  if (sum) byId("cost").textContent = `${(1000 * sum).toFixed(1)} of ${(1000 * frame).toFixed(0)} ms`;
  for (const id of ["save-codec", "save-wav"]) byId(id).disabled = Boolean(total) && made < total;
  byId("size").textContent = total && made < total ? `Encoded: ${Math.round((100 * made) / total)} %` : "";
  if (!current) return;
  if (skipped) complain("This device computes more slowly than in real time, so parts of the signal are left out: close other programs, or open a file.");
  if (available) offer(available);
  current.total = time && time / model.sample_rate;
  if (rows && rows !== current.rows) Object.assign(current, { rows }), showRate();
}

function download(bytes, kind) {
  const name = (byId("source").textContent || "recording").replace(/\.[^.]*$/, "");
  const url = URL.createObjectURL(new Blob([bytes]));
  const link = Object.assign(document.createElement("a"), { href: url, download: kind === "codec" ? `${name}.codec` : `${name}-decoded.wav` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  byId("size").textContent = `${link.download}: ${bytes.length.toLocaleString("en")} bytes`;
}

// Events

byId("microphone").onclick = useMicrophone;
byId("open").onclick = () => byId("file").click();
byId("file").onchange = ({ target }) => {
  if (target.files[0]) openFile(target.files[0]);
  target.value = ""; // so that the same file can be opened again
};
byId("pause").onclick = pause;
byId("stop").onclick = stop;
byId("codebooks").oninput = choose;
byId("listen").onchange = chooseOutput;
byId("backend").onchange = chooseBackend;
for (const kind of ["codec", "wav"]) byId(`save-${kind}`).onclick = () => worker.postMessage({ save: kind });
ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
ondragleave = ({ relatedTarget }) => relatedTarget || document.body.classList.remove("dropping");
ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (!byId("open").disabled && event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
};

start();
