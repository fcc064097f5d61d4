// Spectrograms that scroll, and level meters, of the two outputs of the audio thread.

const RANGE = [-110, -25]; // dB of the darkest and the brightest color
const COLUMNS_PER_SECOND = 60;
const TICKS = [500, 1000, 2000, 4000, 8000]; // Hz

// Points of the color map "magma" of matplotlib.
const COLORS = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]];

const PALETTE = Uint32Array.from({ length: 256 }, (_, shade) => {
  const at = (shade / 256) * (COLORS.length - 1), lower = Math.floor(at);
  const [red, green, blue] = COLORS[lower].map((value, part) => value + (COLORS[lower + 1][part] - value) * (at - lower));
  return (255 << 24) | (blue << 16) | (green << 8) | red; // little endian, as every browser's machine
});

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertz = (mels) => 700 * (10 ** (mels / 2595) - 1);

/** A picture of an AnalyserNode in a canvas, with frequencies on the mel scale. */
export class Spectrogram {
  constructor(canvas, analyzer) {
    const width = Math.round(canvas.clientWidth * devicePixelRatio), height = Math.round(canvas.clientHeight * devicePixelRatio);
    Object.assign(this, { canvas, analyzer, context: canvas.getContext("2d", { willReadFrequently: true }) });
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const top = mel(analyzer.context.sampleRate / 2), bins = analyzer.frequencyBinCount;
    const bin = (row) => (hertz(top * (1 - row / height)) / analyzer.context.sampleRate) * 2 * bins;
    this.rows = Array.from({ length: height }, (_, row) => [Math.floor(bin(row + 1)), Math.ceil(bin(row))]);
    this.bins = new Float32Array(bins);
    this.column = this.context.createImageData(1, height);
    this.pixels = new Uint32Array(this.column.data.buffer);
    this.drawn = Math.floor(analyzer.context.currentTime * COLUMNS_PER_SECOND);
    this.label(top, analyzer.context.sampleRate / 2);
    this.context.clearRect(0, 0, width, height);
  }

  label(top, most) {
    this.canvas.parentElement.querySelectorAll("span").forEach((tick) => tick.remove());
    const apart = 18 / this.canvas.clientHeight; // lines of text, as a share of the height
    let place = 1 + apart;
    for (const tick of TICKS.filter((tick) => tick < 0.9 * most)) {
      const at = 1 - mel(tick) / top;
      if (place - at < apart) continue;
      place = at;
      const text = document.createElement("span");
      text.textContent = tick < 1000 ? `${tick} Hz` : `${tick / 1000} kHz`;
      text.ariaHidden = "true";
      text.style.top = `${100 * at}%`;
      this.canvas.after(text);
    }
  }

  draw() {
    const now = Math.floor(this.analyzer.context.currentTime * COLUMNS_PER_SECOND), scale = Math.max(1, Math.round(devicePixelRatio));
    const count = Math.min(this.canvas.width, (now - this.drawn) * scale);
    if (!count) return;
    this.drawn = now;
    this.analyzer.getFloatFrequencyData(this.bins);
    const [least, most] = RANGE;
    this.rows.forEach(([first, last], row) => {
      let level = -Infinity;
      for (let bin = first; bin < Math.max(last, first + 1); bin++) level = Math.max(level, this.bins[bin]);
      this.pixels[row] = PALETTE[Math.max(0, Math.min(255, Math.floor((256 * (level - least)) / (most - least))))];
    });
    this.context.drawImage(this.canvas, -count, 0);
    for (let column = 1; column <= count; column++) this.context.putImageData(this.column, this.canvas.width - column, 0);
  }
}

/** A level meter: the peak, which falls by 20 dB per second. */
export class Meter {
  constructor(element, analyzer) {
    Object.assign(this, { element, analyzer, level: -60, time: analyzer.context.currentTime, said: 0 });
    this.samples = new Float32Array(analyzer.fftSize);
  }

  draw() {
    this.analyzer.getFloatTimeDomainData(this.samples);
    const peak = 20 * Math.log10(this.samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1e-3));
    const now = this.analyzer.context.currentTime;
    this.level = Math.min(0, Math.max(peak, this.level - 20 * (now - this.time), -60));
    this.time = now;
    const [bar, text] = this.element.children;
    bar.style.clipPath = `inset(0 ${(-100 * this.level) / 60}% 0 0)`;
    if (now - this.said < 0.2 && now > this.said) return;
    this.said = now;
    text.textContent = this.level > -60 ? `${Math.round(this.level)} dB`.replace("-", "−") : "silence";
    this.element.ariaValueNow = Math.round(this.level);
    this.element.ariaValueText = text.textContent;
  }
}
