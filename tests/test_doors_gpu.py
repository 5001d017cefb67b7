"""What a machine with a GPU meets first: no TensorFlow beside torch, and memory for both."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

import chain
from real_midi import ROOT
from utils.files import MusicError


@pytest.fixture
def without_tensorflow(tmp_path) -> dict[str, str]:
    """The environment of a Python in which `import tensorflow` fails, kernels too."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\nsys.modules['tensorflow'] = sys.modules['keras'] = None\n")
    return os.environ | {"PYTHONPATH": str(hook)}


def test_without_tensorflow_03_and_the_gans_part_are_left_out(without_tensorflow, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "chain.py", "--run-dir", run, "--only", "03", "04", "07", "-p", "04.count",
         "2", "-p", "sampling_steps", "2", "-p", "07.count", "2"],
        cwd=ROOT, env=without_tensorflow, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("03 and the GAN's part of 04 and 07 are skipped") == 1
    assert sorted(path.name for path in (run / "samples").iterdir() if path.is_dir()) == [
        "diffusion"]
    table = (run / "report" / "metrics.csv").read_text("utf-8")
    assert "\ndiffusion," in table and "\ngan," not in table


def test_03_alone_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(chain, "without_tensorflow", lambda: True)
    with pytest.raises(MusicError, match=r"03 needs TensorFlow: .*requirements-gpu-tf\.txt"):
        chain.run_chain(tmp_path, only=["03"], live=False)


@pytest.mark.parametrize(("name", "value"), [
    ("TF_FORCE_GPU_ALLOW_GROWTH", "true"), ("TF_CPP_MIN_LOG_LEVEL", "3")])
def test_tensorflow_leaves_gpu_memory_to_torch_and_is_quiet(name, value, monkeypatch, tmp_path):
    monkeypatch.delenv(name, raising=False)
    seen = []
    monkeypatch.setattr(chain.papermill, "execute_notebook",
                        lambda *_, **__: seen.append(os.environ[name]))
    chain.run_chain(tmp_path, only=["05"], live=False)
    monkeypatch.delenv(name)  # as it was before
    assert seen == [value]


@pytest.mark.parametrize("number", ["04", "07"])
def test_a_notebook_with_both_frameworks_asks_for_it_before_keras(number):
    source = "\n".join(cell.source for cell in nbformat.read(chain.NOTEBOOKS[number], 4).cells
                       if cell.cell_type == "code")
    assert re.search(r"TF_FORCE_GPU_ALLOW_GROWTH.*\n+\s*import keras", source)


@pytest.mark.parametrize("number", chain.NOTEBOOKS)
def test_papermill_knows_and_explains_every_parameter(number):
    notebook = nbformat.read(chain.NOTEBOOKS[number], 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    lines = [line for line in cell.source.splitlines() if line.strip()]
    known = chain.papermill.inspect_notebook(chain.NOTEBOOKS[number])
    assert [line.partition(":")[0] for line in lines] == list(known)
    assert all(len(facts["help"].split()) >= 3 for facts in known.values())


def test_tests_run_on_the_cpu_unless_a_gpu_is_asked_for():
    script = "import conftest, os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    for given, seen in (({}, ""), ({"CUDA_VISIBLE_DEVICES": "0"}, "0")):
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | given
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True,
                              capture_output=True, check=True)
        assert done.stdout.strip() == seen


def pins(name: str) -> dict[str, str]:
    """The packages of a requirements file, each with what stands behind its name."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {found[1]: found[2] for line in lines
            if line and (found := re.fullmatch(r"([\w-]+)(.*)", line))}


def test_the_files_for_gpus_pin_what_requirements_txt_pins():
    everything = pins("requirements.txt")
    torch, tensorflow = pins("requirements-gpu-torch.txt"), pins("requirements-gpu-tf.txt")
    assert set(everything) - set(torch) == {"tensorflow", "keras"}
    assert {"torch", "accelerate", "safetensors"} <= set(everything) - set(tensorflow)
    assert tensorflow["tensorflow"] == "[and-cuda]" + everything["tensorflow"]
    for name, pin in (torch | tensorflow).items():
        assert pin.removeprefix("[and-cuda]") == everything[name], name


def test_03_needs_no_torch(tmp_path):
    """It runs in an environment of its own."""
    notebook = nbformat.read(chain.NOTEBOOKS["03"], 4)
    imports = [line for cell in notebook.cells if cell.cell_type == "code"
               for line in cell.source.splitlines() if re.match("(import|from) ", line)]
    hidden = ("import sys\nclass Hide:\n    def find_spec(name, *_):\n        if "
              "name.split('.')[0] "
              "in ('torch', 'safetensors', 'accelerate', 'pychord'):\n            raise "
              "ModuleNotFoundError(name)\nsys.meta_path.insert(0, Hide)\n")
    done = subprocess.run([sys.executable, "-c", hidden + "\n".join(imports)], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
