"""The page of `codec page` in Chromium without a window: a microphone that plays a file, files, and what is refused."""

import functools
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec.compression import decompress, header_of
from codec.io.bitstream import Reader, Writer
from codec.models.base import StepCodec
from tests.export.conftest import voice

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of playwright's event loop
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
RATE = 8000
WAIT = 60_000  # ms
RECORDER = b"""registerProcessor("recorder", class extends AudioWorkletProcessor {
  process([input]) { this.port.postMessage(input[0]?.slice() ?? new Float32Array(128)); return true; }
});"""
# Records what comes from the microphone, and what goes to the loudspeaker: the decoded signal, then the original, each
# behind its own gain.
RECORD = """
globalThis.recorded = [];
globalThis.captured = [];
const { addModule } = AudioWorklet.prototype, { connect } = AudioNode.prototype;
AudioWorklet.prototype.addModule = async function (url) {
  await addModule.call(this, "recorder.js");
  return addModule.call(this, url);
};
function record(source, parts) {
  const node = new AudioWorkletNode(source.context, "recorder", { numberOfOutputs: 0 });
  node.port.onmessage = ({ data }) => parts.push(data);
  connect.call(source, node);
}
AudioNode.prototype.connect = function (target, ...rest) {
  if (this instanceof MediaStreamAudioSourceNode) record(this, captured);
  if (target instanceof AudioDestinationNode) record(this, recorded[recorded.push([]) - 1]);
  return connect.call(this, target, ...rest);
};
"""


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        if not self.path.endswith("/recorder.js"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript")
        self.end_headers()
        self.wfile.write(RECORDER)
        return None


@pytest.fixture(scope="module")
def address(page: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=page))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("microphone") / "voice.wav"
    soundfile.write(path, voice(RATE), RATE)
    return path


@pytest.fixture(scope="module")
def browser(recording: Path) -> Iterator[Any]:
    """Chromium, whose microphone plays the recording again and again."""
    with playwright.sync_playwright() as started:
        flags = [
            "--no-sandbox",  # for root
            "--autoplay-policy=no-user-gesture-required",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            "--js-flags=--liftoff-only",  # the optimizing compiler takes 2 s for each tab
            f"--use-file-for-fake-audio-capture={recording}",
        ]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@dataclass
class Tab:
    """The page in a browser, and what it must not do: requests elsewhere, errors in the console."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def open(self) -> None:
        self.page.goto(self.address)
        self.wait("#status", "Ready.")

    def wait(self, selector: str, text: str | re.Pattern[str]) -> None:
        playwright.expect(self.page.locator(selector)).to_have_text(text, timeout=WAIT)

    def text(self, selector: str) -> str:
        found: str = self.page.inner_text(selector)
        return found

    def drop(self, *paths: Path) -> None:
        self.page.set_input_files("#file", [str(path) for path in paths])

    def save(self, kind: str, path: Path) -> Path:
        playwright.expect(self.page.locator(f"#save-{kind}")).to_be_enabled(timeout=WAIT)
        with self.page.expect_download() as found:
            self.page.click(f"#save-{kind}")
        found.value.save_as(path)
        return path

    def played(self) -> "np.ndarray[Any, Any]":
        """The decoded samples that went to the loudspeaker last."""
        return self.recorded("recorded.at(-2)")

    def captured(self) -> "np.ndarray[Any, Any]":
        """The samples that came from the microphone; a busy browser loses parts of them before the page has them."""
        return self.recorded("captured")

    def recorded(self, name: str) -> "np.ndarray[Any, Any]":
        parts = self.page.evaluate(f"{name}.map((part) => Array.from(part))")
        return np.concatenate([np.array(part, np.float32) for part in parts])


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["microphone"])
    context.add_init_script(RECORD)
    tab = Tab(context.new_page(), address)
    tab.listen()
    yield tab
    context.close()
    assert [url for url in tab.requests if not url.startswith((address, "blob:", "data:"))] == []
    assert tab.errors == []


def similarity(x: "np.ndarray[Any, Any]", y: "np.ndarray[Any, Any]") -> float:
    """The largest normalized correlation of `y` with any part of `x` of its length."""
    size = len(x) + len(y)
    found = np.fft.irfft(np.fft.rfft(x, size) * np.conj(np.fft.rfft(y, size)), size)[: len(x) - len(y) + 1]
    squares = np.concatenate([[0.0], np.cumsum(x.astype(float) ** 2)])
    energy = squares[len(y) :] - squares[: -len(y)]
    return float((found / np.sqrt((energy * np.sum(y.astype(float) ** 2)).clip(1e-9))).max())


def best_part(x: "np.ndarray[Any, Any]", y: "np.ndarray[Any, Any]", size: int = RATE // 2) -> float:
    """The largest `similarity` of a part of `y`, because there may be gaps where the machine is too busy."""
    return max(similarity(x, y[at : at + size]) for at in range(0, len(y) - size + 1, size // 2))


def test_microphone(tab: Tab, model: StepCodec, tmp_path: Path) -> None:
    """The microphone's samples are encoded, all of them, and what is played is what the saved file holds.

    If the machine has too much other work, the page leaves out samples, and says so.
    """
    tab.open()
    tab.page.click("#microphone")
    tab.wait("#position", re.compile("0:0[3-9].*"))
    assert re.fullmatch(r"\d+ ms", tab.text("#delay"))
    played = tab.played()
    tab.page.click("#stop")
    tab.wait("#status", "Stopped.")
    path = tab.save("codec", tmp_path / "microphone.codec")
    with path.open("rb") as file:
        header = Reader(file, label=path.name).header
    assert (header.weights_hash, header.sample_rate) == (model.weights_hash, RATE)
    assert header.time / RATE > 2.5
    captured = tab.captured()
    if "parts of the signal are left out" in tab.text("#problem"):
        pytest.skip("the page says that this machine computes more slowly than in real time")
    assert best_part(np.tile(voice(RATE), 2), captured, RATE // 4) > 0.9
    decompress(path, tmp_path / "decoded.wav", model=model)
    decoded, _ = soundfile.read(tmp_path / "decoded.wav", dtype="float32")
    assert similarity(np.pad(captured, RATE), decoded) > 0.4
    assert best_part(np.pad(decoded, RATE), played) > 0.99


@pytest.mark.nightly
def test_real_time(tab: Tab, recording: Path) -> None:
    """Without other load on the machine, the page leaves out no samples, and the sound has no gap."""
    tab.open()
    tab.page.click("#microphone")
    tab.wait("#position", re.compile("0:1.*"))
    assert tab.text("#underruns") == "0"
    assert tab.text("#problem") == ""
    tab.page.click("#stop")
    tab.drop(recording)
    tab.wait("#status", "The end.")
    assert tab.text("#underruns") == "0"


def test_audio_file(tab: Tab, model: StepCodec, recording: Path, tmp_path: Path) -> None:
    """A file is encoded as ours, played to its end, and saved with the chosen number of codebooks."""
    tab.open()
    tab.drop(recording)
    tab.wait("#status", "The end.")
    assert tab.text("#position").endswith("of 0:03.5")
    audio = torch.from_numpy(soundfile.read(recording, dtype="float32")[0])
    codes = model.encode(audio[None, None])
    expected = model.decode(codes, length=len(audio))[0, 0].numpy()
    played = tab.played()
    assert best_part(np.pad(expected, RATE), played) > 0.999
    assert best_part(np.pad(audio.numpy(), RATE), played) > 0.4
    tab.page.fill("#codebooks", "2")
    tab.wait("#rate", re.compile("^2 of 3: 0.80 kbit/s"))
    with tab.save("codec", tmp_path / "a.codec").open("rb") as file:
        reader = Reader(file, label="a.codec")
        found = np.concatenate(list(reader.packets()), axis=2)
    assert (reader.header.time, found.shape) == (len(audio), (1, 2, codes.shape[2]))
    assert (found != codes[:, :2].numpy()).any(axis=1).sum() <= 1  # a frame may be a near-tie
    saved, rate = soundfile.read(tab.save("wav", tmp_path / "a.wav"), dtype="float32")
    two = model.decode(codes[:, :2], length=len(audio))[0, 0].numpy()
    assert (len(saved), rate) == (len(audio), RATE)
    assert similarity(np.pad(saved, (0, 1)), two) > 0.999


def test_without_a_gpu(tab: Tab) -> None:
    """The codec runs on the CPU, and the page says so."""
    tab.open()
    playwright.expect(tab.page.locator("#backend")).to_be_disabled()
    assert tab.page.input_value("#backend") == "wasm"
    assert tab.page.get_attribute("#backend", "title") == "This browser has no GPU for WebGPU."


def test_a_gpu_that_cannot_be_used(tab: Tab, recording: Path) -> None:
    """The page says why in one line, and plays on the CPU."""
    tab.page.add_init_script("Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => ({}) } })")
    tab.open()
    tab.page.select_option("#backend", "webgpu")
    tab.wait("#status", "The codec runs on the CPU.")
    assert re.fullmatch(r"The GPU cannot be used \(.+\)\.", tab.text("#problem"))
    assert tab.page.input_value("#backend") == "wasm"
    tab.drop(recording)
    tab.wait("#status", "The end.")
    assert tab.text("#problem") == ""


def test_codec_file(tab: Tab, model: StepCodec, recording: Path, tmp_path: Path) -> None:
    """Two channels; dropped, not selected; the slider moves while it plays, and the original cannot be played.

    The bit rate is that of the next recording, which has one channel, once it is opened.
    """
    audio = torch.from_numpy(np.stack([voice(RATE), voice(RATE)[::-1]]).copy())[:, None]
    codes = model.encode(audio)
    with (tmp_path / "a.codec").open("wb") as file:
        writer = Writer(file, header_of(model, RATE, channels=2, num_codebooks=3))
        writer.write(codes.numpy())
        writer.close(time=audio.shape[2])
    tab.open()
    content = list((tmp_path / "a.codec").read_bytes())
    transfer = tab.page.evaluate_handle(
        "(bytes) => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], 'a.codec')); return data; }",
        content,
    )
    tab.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    tab.wait("#bitrate", "2.40 kbit/s")
    playwright.expect(tab.page.locator("[value=original]")).to_be_disabled()
    tab.page.focus("#codebooks")
    tab.page.keyboard.press("ArrowLeft")
    tab.wait("#bitrate", "1.60 kbit/s")
    tab.wait("#status", "The end.")
    assert tab.text("#source") == "a.codec"
    expected = model.decode(codes[:, :2], length=audio.shape[2])[0, 0].numpy()
    assert best_part(np.pad(expected, RATE), tab.played()[RATE:]) > 0.99
    tab.drop(recording)
    tab.wait("#bitrate", "0.80 kbit/s")


def test_codec_file_of_fewer_codebooks(tab: Tab, model: StepCodec, tmp_path: Path) -> None:
    """The slider ends at the file's codebooks, and the file is saved as it is."""
    codes = model.encode(torch.from_numpy(voice(RATE))[None, None], num_codebooks=2)
    with (tmp_path / "two.codec").open("wb") as file:
        writer = Writer(file, header_of(model, RATE, channels=1, num_codebooks=2, packet=1.0), coder=0)
        writer.write(codes.numpy())
        writer.close(time=len(voice(RATE)))
    tab.open()
    tab.drop(tmp_path / "two.codec")
    tab.wait("#rate", re.compile("^2 of 2: 0.80 kbit/s"))
    assert tab.save("codec", tmp_path / "saved.codec").read_bytes() == (tmp_path / "two.codec").read_bytes()
    tab.page.click("#microphone")
    tab.wait("#rate", re.compile("^3 of 3: 1.20 kbit/s"))


def test_bad_input(tab: Tab, model: StepCodec, tmp_path: Path) -> None:
    """One line for each; the page still works."""
    header = header_of(model, RATE, channels=1, num_codebooks=3)
    codes = np.zeros((1, 3, 200), np.int64)
    for name, weights in (("damaged", model.weights_hash), ("other", "0" * 64)):
        with (tmp_path / f"{name}.codec").open("wb") as file:
            writer = Writer(file, type(header)(**vars(header) | {"weights_hash": weights}), coder=0)
            writer.write(codes)
            writer.close(time=15_000)
    damaged = bytearray((tmp_path / "damaged.codec").read_bytes())
    damaged[150] ^= 1
    (tmp_path / "damaged.codec").write_bytes(damaged)
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "old.codec").write_bytes((Path(__file__).parents[1] / "golden" / "version-1.codec").read_bytes())
    tab.open()
    problems = {
        "old.codec": r"old\.codec cannot be read \(version 1\): convert it with codec transcode\.",
        "damaged.codec": r"damaged\.codec cannot be read \(damaged at byte \d+\): fetch the file again\.",
        "other.codec": r"other\.codec was made by .*weights 000000000000.* and this page has .*: write a page with .*",
        "text.wav": r"text\.wav is not audio that this browser reads: open a WAV, .*",
    }
    for name, problem in problems.items():
        tab.drop(tmp_path / name)
        tab.wait("#problem", re.compile(problem))
    refuse = "Promise.reject(new DOMException('none', 'NotFoundError'))"
    tab.page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = () => {refuse}; }}")
    tab.page.click("#microphone")
    tab.wait("#problem", "No microphone was found: connect one, or open a file.")


@pytest.mark.parametrize(
    ("script", "lacking"),
    [
        ("WebAssembly.validate = () => false", "WebAssembly SIMD"),
        ("delete globalThis.WebAssembly", "WebAssembly SIMD"),  # as browsers do whose user asks for more safety
        ("delete globalThis.DecompressionStream", "DecompressionStream"),
    ],
)
def test_browsers_that_lack_something(tab: Tab, script: str, lacking: str) -> None:
    tab.page.add_init_script(script)
    tab.page.goto(tab.address)
    tab.wait("#problem", re.compile(f"This browser has no {lacking}: use Chrome 91, .*"))
    assert tab.text("#status") == ""


def test_missing_graph(tab: Tab) -> None:
    tab.page.route("**/encoder.gz", lambda route: route.fulfill(status=404))
    tab.page.goto(tab.address)
    tab.wait("#problem", "encoder.gz is missing (HTTP 404): write the folder again with codec page.")


def test_widths_and_labels(tab: Tab) -> None:
    """Nothing is wider than the screen, and every control has a name."""
    tab.open()
    for width in (320, 390, 1280):
        tab.page.set_viewport_size({"width": width, "height": 800})
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    names = tab.page.evaluate(
        "[...document.querySelectorAll('button, input:not([hidden]), canvas, [role=meter]')].map((one) =>"
        "one.ariaLabel || one.textContent.trim() || one.labels?.[0]?.textContent.trim())"
    )
    assert len(names) == 13
    assert all(names)
