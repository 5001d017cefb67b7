"""What people meet first: complete.py, the site, `make bench`, `make notebooks-test`, a machine
without TensorFlow, and what the README and the instructions say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from real_midi import ROOT

sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests" / "benchmarks")]
import bench
import site_page

import chain
import complete
from utils import audio, edit, pianoroll
from utils.files import MusicError


def command(*arguments, **given):
    """Run Python with `arguments` to its end."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False,
                          **{"cwd": ROOT} | given)


# ---------------------------------------------------------------- complete.py


@pytest.mark.parametrize(("arguments", "line"), [
    (["song.mid", "--tkes", "3"], "--tkes: no such option, did you mean --takes"),
    (["my", "song.mid"], "song.mid: one MIDI file at a time"),
    ([], "give a MIDI file: python complete.py song.mid"),
    (["song.mid", "--mode", "long"], "song.mid: --mode long begins from nothing"),
    (["song.mid", "--mode", "infil"], "mode 'infil'; choose one of continue, infill, vary"),
    (["song.mid", "--takes", "0"], "--takes is 0; choose 1 to 99"),
    (["song.mid", "--bars", "x"], "argument --bars: invalid int value: 'x'"),
    (["--mode", "long", "--out", __file__], "test_doors.py: is a file; give --out a folder"),
    (["nowhere.mid"], "nowhere.mid: no such file")])
def test_a_mistake_is_refused_in_one_line_before_anything_runs(arguments, line, monkeypatch,
                                                               tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain, "run_chain", None)
    assert complete.main(arguments) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


@pytest.mark.slow
def test_takes_differ_where_they_are_new_and_the_page_frames_them(tmp_path, builtin_midi):
    """Started in a folder of its own, with a song whose name is not plain."""
    path = shutil.copy(builtin_midi[7], tmp_path / "<b>it's 音.mid")
    done = command(ROOT / "chain.py", "complete", path.name, "--takes", "2", "--mode", "infill",
                   "--first-bar", "5", "--bars", "2", "--sampling-steps", "2", "--out", "mine",
                   cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "mine"
    assert str(out / "gallery.html") in done.stdout
    assert sorted(path.suffix for path in out.iterdir()) == [
        ".html", ".mid", ".mid", ".png", ".png", ".wav", ".wav", ".wav"]

    song = edit.open_midi(path)
    old, (begin, end) = song.roll.pixels, song.bar_lines[[4, 6]]
    one, two = (edit.open_midi(take).roll.pixels for take in out.glob("*.mid"))
    assert not np.array_equal(one[:, begin:end], two[:, begin:end])
    for roll in (one, two):
        assert np.array_equal(roll[:, :begin], old[:, :begin])
        assert np.array_equal(roll[:, end:], old[:, end:])

    page, width = (out / "gallery.html").read_text("utf-8"), old.shape[1]
    assert page.count("<audio") == page.count("Download the MIDI</a>") == 3
    assert page.count(f"left:{begin / width:.3%}; width:{(end - begin) / width:.3%}") == 2
    assert "<b>it" not in page and "&lt;b&gt;it" in page


def test_a_take_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, builtin_midi,
                                                         capsys):
    def take(values, _out):
        if values["seed"] == 1:
            raise MusicError("the model chose silence")
        return builtin_midi[0], None

    monkeypatch.setattr(complete, "take", take)
    monkeypatch.setattr(complete, "gallery", lambda *_: None)
    assert complete.main([str(builtin_midi[0]), "--takes", "3", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "seed 1: MusicError: the model chose silence" in said.err and "2 takes" in said.out


def test_a_python_without_the_packages_is_told_what_to_do():
    done = command("-S", "complete.py", "song.mid")
    assert done.returncode == 1 and "make setup" in done.stderr and done.stderr.count("\n") == 1


# ---------------------------------------------------------------- pages and tables


def test_the_messages_that_instructions_txt_explains_are_those_of_the_code():
    code = "".join(path.read_text("utf-8") for path in (
        ROOT / "Makefile", *ROOT.glob("*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("utils/*.py")))
    for message in ("Python 3.11 to 3.13 is needed", "is not installed in this Python",
                    "Start this notebook inside the repository, or set MUSIC_ROOT to its folder.",
                    "no such folder", "no MIDI files", "Silence: nothing to hear",
                    "its process ended, most likely because memory ran out"):
        assert message in (ROOT / "instructions.txt").read_text("utf-8")
        assert message in re.sub(r'"\s*f?"', "", code)  # it may go on in the next line


@pytest.mark.parametrize("name", ["README.md", "instructions.txt"])
def test_options_of_complete_py_that_are_explained_exist(name):
    options = complete.parser_of(complete.parameters_of_08())._option_string_actions
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if "complete.py" in line or line.lstrip().startswith("--mode"):
            assert set(re.findall(r"--[a-z-]+", line)) <= set(options), line


def test_the_site_has_image_player_and_midi_of_each_piece_and_links_the_studio(tmp_path,
                                                                               monkeypatch):
    """With a stand-in for the chain: three pieces, and a silent one, which is left out."""
    def run_chain(run, parameters, only):
        assert parameters["04.count"] == 2 and list(only) == ["04", "05", "06"]
        notes = np.array([[0, 4, 60, 80], [4, 4, 64, 80]])
        roll = pianoroll.PianoRoll(pianoroll.roll_of(notes, 128, 128))
        for name in ("diffusion/a", "diffusion/b", "gan/a", "gan/silent"):
            pianoroll.save_png(roll, Path(run, "samples", f"{name}.png"))
            if "silent" not in name:
                midi = pianoroll.save_midi(roll, Path(run, "midi", f"{name}.mid"))
                audio.midi_to_wav(midi, Path(run, "wav", f"{name}.wav"), sample_rate=16000)

    monkeypatch.setattr(site_page.chain, "run_chain", run_chain)
    page = site_page.main(2, tmp_path / "docs" / "index.html")
    text = page.read_text("utf-8")
    for part in ("<audio", "Download the MIDI</a>", "data:image/png", "data:audio/midi"):
        assert text.count(part) == 3
    assert "The diffusion model, piece 2" in text and "The GAN, piece 1" in text
    assert text.count("http") == text.count('<a href="https://github.com/'), "nothing is fetched"
    assert (page.parent / ".nojekyll").is_file() and site_page.STUDIO not in text
    assert site_page.STUDIO in dict(map(reversed, site_page.links_of(ROOT / "docs")))


def test_a_part_of_the_benchmarks_that_fails_is_named_and_what_it_measured_is_kept(tmp_path,
                                                                                   monkeypatch):
    def run(command, **_):
        row = bench.line_of(f"{command[-1]} is fast", "s", 2.0, "a peer", 10.0)
        if command[-1] == "gan":
            raise subprocess.TimeoutExpired(command, 240, row.encode())
        return subprocess.CompletedProcess(command, command[-1] == "audio", row, "KeyError: 'A'")

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.main(str(tmp_path / "bench" / "bench.md")) == 1
    text = (tmp_path / "bench" / "bench.md").read_text("utf-8")
    assert text.count("is fast | s | 2 | 10 | 5.0 | a peer |") == len(bench.PARTS)
    assert bench.machine() in text
    for name, reason in (("gan", "more than 240 s"), ("audio", "KeyError: 'A'")):
        assert f"Not measured: {name}, in part or all of it: {reason}" in text


@pytest.mark.slow
def test_two_runs_of_papermill_at_a_time_from_any_folder_keep_apart(tmp_path):
    """05 in a folder elsewhere with -p, and in the notebooks' own with -f."""
    processes = []
    for i, cwd in enumerate((tmp_path, ROOT / "notebooks")):
        roll = pianoroll.PianoRoll(pianoroll.roll_of(np.array([[0, 4, 60 + i, 90]]), 128, 128))
        pianoroll.save_png(roll, tmp_path / f"images {i}" / f"{i}.png")
        values = {"run_dir": f"{tmp_path}/run {i}", "image_dir": f"{tmp_path}/images {i}"}
        yaml = tmp_path / "values.yaml"
        yaml.write_text("".join(f'{name}: "{value}"\n' for name, value in values.items()))
        given = ["-f", yaml] if i else [w for pair in values.items() for w in ("-p", *pair)]
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "papermill", chain.NOTEBOOKS["05"], tmp_path / f"{i}.ipynb",
             *given], cwd=cwd, env=os.environ | {"MUSIC_ROOT": str(ROOT)}))
    for i, process in enumerate(processes):
        assert process.wait(300) == 0
        (path,) = (tmp_path / f"run {i}" / "midi").rglob("*.mid")
        assert pianoroll.notes_of(pianoroll.read_midi(path))[:, 2].tolist() == [60 + i]


@pytest.mark.slow
def test_nbval_compares_numbers_but_no_time_device_player_and_progress(tmp_path):
    """A small notebook, whose stored outputs are another machine's, and one number wrong."""
    new = nbformat.v4
    player = {"text/html": "<audio>", "text/plain": "<IPython.core.display.HTML object>"}
    cells = [new.new_code_cell(source, execution_count=i, outputs=outputs)
             for i, (source, outputs) in enumerate([
                 ("from IPython.display import HTML\nimport sys", []),
                 ("print('notes', 412, 'in 3.5 s on cpu')",
                  [new.new_output("stream", text="notes 412 in 9.1 s on cuda\n")]),
                 ("HTML('<audio src=\"1\">')",
                  [new.new_output("execute_result", execution_count=3, data=player)]),
                 ("print('half', file=sys.stderr)",
                  [new.new_output("stream", name="stderr", text="100%\n")]),
                 ("print('bars', 8)", [new.new_output("stream", text="bars 9\n")])], 1)]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "small.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    done = command("-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider",
                   "--nbval-sanitize-with", ROOT / "tests" / "nbval_sanitize.cfg", "--rootdir",
                   tmp_path, tmp_path / "small.ipynb", cwd=tmp_path)
    assert "1 failed, 4 passed" in done.stdout and "bars 9" in done.stdout, done.stdout[-2000:]


# ---------------------------------------------------------------- a GPU, or no TensorFlow


@pytest.mark.slow
def test_without_tensorflow_03_and_the_gans_part_are_left_out(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(  # every Python, kernels too
        "import sys\nsys.modules['tensorflow'] = sys.modules['keras'] = None\n")
    run = tmp_path / "run"
    done = command("chain.py", "--run-dir", run, "--only", "03", "04", "07", "-p", "04.count", "2",
                   "-p", "sampling_steps", "2", "-p", "07.count", "2",
                   env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("03 and the GAN's part of 04 and 07 are skipped") == 1
    assert [path.name for path in (run / "samples").iterdir() if path.is_dir()] == ["diffusion"]
    table = (run / "report" / "metrics.csv").read_text("utf-8")
    assert "\ndiffusion," in table and "\ngan," not in table


def test_03_alone_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MusicError, match=r"03 needs TensorFlow: .*requirements-gpu-tf\.txt"):
        chain.run_chain(tmp_path, only=["03"], live=False)


def test_the_chain_has_tensorflow_leave_gpu_memory_to_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(chain.papermill, "execute_notebook", lambda *_, **__: None)
    chain.run_chain(tmp_path, only=["04"], live=False)
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def test_the_files_for_gpus_pin_what_requirements_txt_pins():
    everything, torch, tensorflow = (
        dict(re.findall(r"^([\w-]+)([^#\s]*)", (ROOT / name).read_text("utf-8"), re.M))
        for name in ("requirements.txt", "requirements-gpu-torch.txt", "requirements-gpu-tf.txt"))
    assert set(everything) - set(torch) == {"tensorflow", "keras"}
    assert {"torch", "accelerate", "safetensors"} <= set(everything) - set(tensorflow)
    assert tensorflow["tensorflow"] == "[and-cuda]" + everything["tensorflow"]
    for name, pin in (torch | tensorflow).items():
        assert pin.removeprefix("[and-cuda]") == everything[name], name


@pytest.mark.slow
def test_03_needs_no_torch(tmp_path):
    """It runs in an environment of its own."""
    for name in ("torch", "safetensors", "accelerate", "pychord"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}')")
    code = "\n".join(cell.source for cell in nbformat.read(chain.NOTEBOOKS["03"], 4).cells
                     if cell.cell_type == "code")
    imports = "\n".join(re.findall(r"^(?:import|from) .*", code, re.M))
    done = command("-c", imports, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_compiler_of_pytorchs_build_for_cuda_is_loaded_before_tensorflow(tmp_path):
    """A stand-in for Triton; where TensorFlow is loaded first, the real one ends the process."""
    (tmp_path / "triton" / "_C").mkdir(parents=True)
    (tmp_path / "triton" / "_C" / "libtriton.py").write_text("print('loaded')")
    (tmp_path / "triton" / "__init__.py").touch()  # else an installed Triton comes first
    code = "\n".join(cell.source for cell in nbformat.read(chain.NOTEBOOKS["04"], 4).cells
                     if cell.cell_type == "code").partition("import keras")[0]
    imports = "\n".join(re.findall(r"^(?:import|from) .*", code, re.M))
    done = command("-c", f"{imports}\nimport sys\nassert 'tensorflow' not in sys.modules",
                   env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and "loaded" in done.stdout, done.stderr[-2000:]
