"""The page in docs/studio: its model file, and its scripts in a browser, beside their twins."""

import dataclasses
import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading

import mido
import numpy as np
import pretty_midi
import pytest
import torch
from browser import Roll, browser, until

from real_midi import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import export_onnx

from utils import canvas, diffusion, harmony, pianoroll, unet

STUDIO, NPM = ROOT / "docs" / "studio", ROOT / "runs" / "npm"
CDN, VERSION = re.search(r'"(https://[^"]*/npm/)onnxruntime-web@([\d.]+)/dist/"',
                         (STUDIO / "worker.js").read_text()).groups()
DIST = NPM / "node_modules" / "onnxruntime-web" / "dist"
MOTIF = 8  # notes that stand on the page at first
REQUEST = {"keep": [[0, 4, 60, 80, 0], [40, 8, 64, 90, 0], [-4, 10, 50, 70, 0]], "vary": [],
           "selection": None, "strength": 1.0, "seed": 1, "chords": "", "scale": "", "density": 0,
           "left": 0, "lines": list(range(0, 128, 16))}


# ---------------------------------------------------------------- the model file


@pytest.fixture(scope="module")
def tiny():
    """An untrained network that generates more than silence, all of its parts at work."""
    torch.manual_seed(0)
    rolls = pianoroll.roll_of(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)[None]
    new = unet.new(rolls, "tiny")
    new.prior.fill_(-2)
    new.prior[:, :, 90:] = -20  # rows that stay silent
    new.config = dataclasses.replace(new.config, active_counts=(900, 700, 800),
                                     onset_counts=(400, 300, 200), velocity_spreads=(5, 10, 20))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=random))
    return new.eval()


def exported(network, folder):
    """A folder with the network's weights and with its model for the page."""
    unet.save(network, folder / "weights.safetensors")
    export_onnx.main(folder / "weights.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def tiny_model(tiny, tmp_path_factory):
    return exported(tiny, tmp_path_factory.mktemp("tiny"))


def test_the_pages_model_is_made_of_the_shipped_weights():
    remedy = "run: python docs/export_onnx.py"
    facts = json.loads((STUDIO / "model.json").read_text())
    model = (STUDIO / "model.onnx").read_bytes()
    for name, data in (("weights", export_onnx.WEIGHTS.read_bytes()), ("sha256", model)):
        assert facts[name] == hashlib.sha256(data).hexdigest(), remedy


# ---------------------------------------------------------------- a server and a browser


@pytest.fixture(scope="module")
def engine():
    """ONNX Runtime Web as the npm registry has it; the test is skipped where there is none."""
    facts = DIST.parent / "package.json"
    if not facts.is_file() or f'"version": "{VERSION}"' not in facts.read_text():
        npm = shutil.which("npm")
        if not npm or subprocess.run(
                [npm, "install", "--prefix", NPM, "--no-save", "--ignore-scripts",
                 f"onnxruntime-web@{VERSION}"], capture_output=True, check=False).returncode:
            pytest.skip("npm is not installed, or could not install ONNX Runtime Web")
    return DIST


class Site(http.server.SimpleHTTPRequestHandler):
    """The repository's files, and in place of the CDN the files of npm."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        name, site = self.path.split("?")[0].rpartition("/")[2], self.server
        if site.is_down:
            self.close_connection = True
        elif name == "worker.js":
            self.send((STUDIO / name).read_text().replace(CDN, "/npm/").replace(*site.broken))
        elif self.path.startswith("/npm/"):
            self.send((site.engine / name).read_bytes())
        elif name in ("model.json", "model.onnx"):
            self.send((site.model / name).read_bytes())
        elif name == "empty.html":
            self.send("<!DOCTYPE html><link rel=icon href=data:,>")
        else:
            super().do_GET()

    def send(self, data):
        data = data.encode() if isinstance(data, str) else data
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(self.path.split("?")[0]))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def server(engine, tiny_model):
    handler = functools.partial(Site, directory=ROOT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        site.engine, site.model, site.is_down, site.broken = engine, tiny_model, False, ("", "")
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site
        site.shutdown()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    with browser(downloads=folder) as opened:
        opened.downloads = folder
        opened.set_script_timeout(120)
        yield opened


@pytest.fixture
def origin(driver, server):
    """An empty page of the same server, from which scripts can be called; it loads no model."""
    driver.get(f"http://127.0.0.1:{server.server_port}/empty.html")


def opened_page(driver, server):
    """The page with nothing kept from before but what works offline."""
    driver.execute_script("sessionStorage.clear()")
    driver.get_log("browser")
    driver.get(f"http://127.0.0.1:{server.server_port}/docs/studio/")
    roll = Roll(driver)
    until(lambda: roll.js("return document.querySelector('.roll-grid').width > 500"), 30)
    return roll


@pytest.fixture
def page(driver, server, origin):
    """The page, its model loaded; afterwards the console must hold no error."""
    opened = opened_page(driver, server)
    until(lambda: opened.js("return document.getElementById('loading').hidden"), 60, "it is loaded")
    yield opened
    assert opened.errors() == []


def asked(driver, requests):
    """What the page's worker answers to requests, a list of rows each."""
    return driver.execute_async_script("""
        const [requests, done] = arguments, answers = [];
        const worker = new Worker("/docs/studio/worker.js", { type: "module" });
        worker.onmessage = ({ data }) => {
          if (["done", "error"].includes(data.kind)) answers.push(data.notes ?? data.text);
          if (answers.length === requests.length) { worker.terminate(); done(answers); }
        };
        requests.forEach((request, id) => worker.postMessage({ id, what: "generate", request }));
        """, requests)


def called(driver, module, name, *calls):
    """What a function of a script answers to each list of arguments, or the text of its error."""
    return driver.execute_async_script("""
        const [module, name, calls, done] = arguments;
        import(`/docs/studio/${module}.js`).then((found) => done(calls.map((given) => {
          try { return found[name](...given); } catch (error) { return error.message; }
        })));""", module, name, calls)


# ---------------------------------------------------------------- the twins


CONDITIONS = [
    {}, {"selection": {"begin": 32, "end": 96, "low": 40, "high": 90}, "density": 12},
    {"chords": "C Am F,G C", "scale": "C major", "keep": [], "seed": 2**32 - 1},
    {"vary": [[at, 4, 60 + at % 12, 80, 1] for at in range(0, 128, 4)], "strength": 0.6,
     "left": 16, "lines": list(range(0, 400, 12))}]


@pytest.mark.browser
@pytest.mark.parametrize("weights", ["tiny", "shipped"])
def test_the_same_seed_gives_the_same_music_as_in_python(driver, server, origin, tiny, tmp_path,
                                                         weights, monkeypatch):
    """But for one pixel in a thousand, and not that of another seed."""
    def in_python(request):
        return canvas.window_of(canvas.fill(network, request))

    monkeypatch.setattr(diffusion, "fast_bfloat16", lambda _: False)
    network, conditions = tiny, CONDITIONS
    if weights == "shipped":
        network, conditions = unet.load(export_onnx.WEIGHTS), CONDITIONS[1:2]
        monkeypatch.setattr(server, "model", exported(network, tmp_path))
    network = export_onnx.halved(network)
    requests = [REQUEST | changed for changed in conditions]
    for request, theirs in zip(requests, asked(driver, requests), strict=True):
        ours = in_python(request)
        assert np.mean(ours == canvas.window_of(theirs)) >= 0.999, request
    assert np.mean(ours == in_python(request | {"seed": 5})) < 0.999


@pytest.mark.browser
def test_chords_and_scales_mean_what_they_mean_in_python(driver, origin, tiny_model):
    tables = json.loads((tiny_model / "model.json").read_text())["harmony"]
    chords = [f"{root}{quality}" for root in ("C", "F#", "Bb") for quality in tables["qualities"]]
    chords += ["C/E", "F♯m7/B", "A:min7", "C:maj/3", "D:sus4(b7)", "Dmin7", "N", "B#"]
    scales = ["d  Dorian", "Bb", "A harmonic minor"]
    for function, twin, names in (("chordTones", harmony.chord_tones, chords),
                                  ("scaleTones", harmony.scale_tones, scales)):
        found = called(driver, "harmony", function, *([name, tables] for name in [*names, "H7"]))
        assert found.pop().startswith(("chord 'H7' cannot be read", "scale 'H7' is unknown"))
        for name, theirs in zip(names, found, strict=True):
            assert sorted(set(theirs)) == np.flatnonzero(twin(name)).tolist(), name
    by_bar = "C Am F , G", [0, 16, 32, 44, 60, 76]
    (theirs,) = called(driver, "harmony", "chordsByBar", by_bar)
    assert list(map(tuple, theirs)) == harmony.chords_by_bar(by_bar[0], np.array(by_bar[1]))


@pytest.mark.browser
def test_a_midi_file_is_read_as_in_python_or_refused(driver, origin, builtin_midi, tmp_path):
    meter = mido.MetaMessage("time_signature", numerator=3, denominator=4)
    beat = [mido.Message("note_on", note=60, velocity=80),
            mido.Message("note_on", note=60, velocity=0, time=450),  # a note-off, and a rest
            mido.Message("program_change", program=3, time=30)]
    track = mido.MidiTrack([*beat * 8, meter, *beat * 9])
    mido.MidiFile(type=0, tracks=[track]).save(tmp_path / "meter.mid")
    paths = [tmp_path / "meter.mid", *builtin_midi[:9:2]]
    songs = called(driver, "midi", "read", *(["x.mid", list(path.read_bytes())] for path in paths))
    for path, theirs in zip(paths, songs, strict=True):
        ours = canvas.load_song(path)
        assert sorted(theirs["notes"]) == sorted(ours["notes"]), path.name
        assert theirs["lines"] == ours["lines"] and theirs["steps"] == ours["steps"], path.name
        assert theirs["tempo"] == pytest.approx(ours["tempo"], abs=0.06)
    damaged = {b"": "not MIDI", b"MThd\0\0\0\6\0\0\0\1\1\xe0": "no notes",
               b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\x09\0\x90": "middle of a track"}
    answers = called(driver, "midi", "read", *(["x.mid", list(data)] for data in damaged))
    for answer, message in zip(answers, damaged.values(), strict=True):
        assert answer.startswith("x.mid: ") and message in answer and "\n" not in answer


# ---------------------------------------------------------------- as a person uses it


@pytest.mark.browser
def test_one_loads_draws_generates_plays_undoes_and_saves(driver, page, builtin_midi):
    driver.find_element("css selector", "input[type=file]").send_keys(str(builtin_midi[1]))
    until(lambda: page.status().startswith(builtin_midi[1].stem), 20, "a file is loaded")
    page.click("clear")
    page.drag((0, 60), (3, 60))
    (mine,) = page.notes()
    page.click("select")
    page.drag((32, 56), (62, 72))
    driver.find_element("css selector", "input[maxlength='400']").send_keys("C Am")
    page.click("generate")
    page.click("generate")  # it is called Stop now
    until(lambda: page.status() == "Stopped.", 20)
    assert page.notes() == [mine]
    page.click("generate")
    until(lambda: len(page.notes()) > 1, 60, "new notes")
    until(lambda: page.status().endswith("keep or reject."), 60, "all of them")
    kept, *new = after = page.notes()
    assert kept == mine
    assert all(n[0] >= 32 and n[0] + n[1] <= 64 and 56 <= n[2] <= 72 and n[3] == 1 for n in new)
    page.click("undo")
    assert page.notes() == [mine]
    page.click("redo")
    assert page.notes() == after
    page.click("keep")
    page.click("play")
    first = until(page.playhead, 30, "it plays")
    until(lambda: page.playhead() > first + 3, 20, "the playhead moves")
    page.click("play")
    page.click("save")
    path = driver.downloads / f"{builtin_midi[1].stem}.mid"
    until(path.is_file, 20, "it is downloaded")
    saved = pretty_midi.PrettyMIDI(str(path))
    step_s = 60 / saved.get_tempo_changes()[1][0] / 4
    assert sorted((round(note.start / step_s), round((note.end - note.start) / step_s), note.pitch)
                  for note in saved.instruments[0].notes) == [n[:3] for n in page.notes()]


@pytest.mark.browser
@pytest.mark.parametrize(("broken", "message"), [
    (("model.onnx?", "missing.onnx?"), "missing.onnx did not load (the server answered 404)"),
    (("sha384-PLWz", "sha384-PLWx"), "ort.wasm.bundle.min.mjs did not load"),
    (("WebAssembly.validate(SIMD)", "false"), "This browser's WebAssembly has no SIMD")])
def test_what_cannot_be_loaded_is_one_line_and_drawing_goes_on(driver, server, origin, monkeypatch,
                                                               broken, message):
    monkeypatch.setattr(server, "broken", broken)
    roll = opened_page(driver, server)
    problem = "return document.getElementById('problem').textContent"
    until(lambda: driver.execute_script(problem).startswith(message), 30, message)
    roll.click("generate")
    until(lambda: roll.status().startswith(message), 30)
    roll.drag((64, 60), (67, 60))
    assert (64, 4, 60, 0, False) in roll.notes()


@pytest.mark.browser
def test_after_the_first_visit_it_works_offline(driver, server, page, monkeypatch):
    monkeypatch.setattr(server, "is_down", True)
    roll = opened_page(driver, server)
    roll.click("generate")
    until(lambda: len(roll.notes()) > MOTIF, 60, "new notes")
    driver.get_log("browser")  # what the browser could not fetch anew


@pytest.mark.browser
def test_nothing_is_wider_than_the_page(driver, page):
    width = "return document.documentElement.{}Width"
    for pixels in (360, 768, 1280):
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 700})
        until(lambda w=pixels: page.js(width.format("client")) <= w)
        assert page.js(width.format("scroll")) <= pixels
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
