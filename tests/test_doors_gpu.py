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


def code_of(number: str) -> str:
    return "\n".join(cell.source for cell in nbformat.read(chain.NOTEBOOKS[number], 4).cells
                     if cell.cell_type == "code")


def test_without_tensorflow_03_and_the_gans_part_are_left_out(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(  # every Python, kernels too
        "import sys\nsys.modules['tensorflow'] = sys.modules['keras'] = None\n")
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "chain.py", "--run-dir", run, "--only", "03", "04", "07", "-p", "04.count",
         "2", "-p", "sampling_steps", "2", "-p", "07.count", "2"], cwd=ROOT, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("03 and the GAN's part of 04 and 07 are skipped") == 1
    assert [path.name for path in (run / "samples").iterdir() if path.is_dir()] == ["diffusion"]
    table = (run / "report" / "metrics.csv").read_text("utf-8")
    assert "\ndiffusion," in table and "\ngan," not in table


def test_03_alone_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MusicError, match=r"03 needs TensorFlow: .*requirements-gpu-tf\.txt"):
        chain.run_chain(tmp_path, only=["03"], live=False)


@pytest.mark.parametrize("number", ["04", "07"])
def test_tensorflow_leaves_gpu_memory_to_torch(number, monkeypatch, tmp_path):
    """In a notebook with both frameworks, alone and in the chain."""
    assert re.search(r"TF_FORCE_GPU_ALLOW_GROWTH.*\n+\s*import keras", code_of(number))
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(chain.papermill, "execute_notebook", lambda *_, **__: None)
    chain.run_chain(tmp_path, only=[number], live=False)
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def pins(name: str) -> dict[str, str]:
    """The packages of a requirements file, each with what stands behind its name."""
    return dict(re.findall(r"^([\w-]+)([^#\s]*)", (ROOT / name).read_text("utf-8"), re.M))


def test_the_files_for_gpus_pin_what_requirements_txt_pins():
    everything = pins("requirements.txt")
    torch, tensorflow = pins("requirements-gpu-torch.txt"), pins("requirements-gpu-tf.txt")
    assert set(everything) - set(torch) == {"tensorflow", "keras"}
    assert {"torch", "accelerate", "safetensors"} <= set(everything) - set(tensorflow)
    assert tensorflow["tensorflow"] == "[and-cuda]" + everything["tensorflow"]
    for name, pin in (torch | tensorflow).items():
        assert pin.removeprefix("[and-cuda]") == everything[name], name


HIDE = """
import sys
class Hide:
    def find_spec(name, *_):
        if name.split(".")[0] in ("torch", "safetensors", "accelerate", "pychord"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide)
"""


def test_03_needs_no_torch():
    """It runs in an environment of its own."""
    imports = re.findall(r"^(?:import|from) .*", code_of("03"), re.M)
    subprocess.run([sys.executable, "-c", HIDE + "\n".join(imports)], cwd=ROOT, check=True)
