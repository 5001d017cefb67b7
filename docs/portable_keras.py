"""The GAN's files in a form that Keras 3.10 and later open: python docs/portable_keras.py FILE …

Keras opens what an older version saved, but seldom what a newer one did, since each adds settings
to the description of a layer. Here those are left out that none of our layers sets. The weights
stay as they are. Run it on `data/models/*.keras` after a change of them.
"""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.files import atomic

NEW = ("quantization_config", "input_axes", "output_axes")  # of layers and their initialisers


def without_new_settings(part: object) -> object:
    """A description without the settings `NEW`, and operations without names of their own."""
    if isinstance(part, list):
        return [without_new_settings(one) for one in part]
    if not isinstance(part, dict):
        return part
    part = {name: without_new_settings(value) for name, value in part.items() if name not in NEW}
    if str(part.get("module")).startswith("keras.src.ops"):
        part["config"].pop("name", None)
    return part


def layers_of(config: dict) -> Iterator[dict]:
    """The descriptions of a network's layers, and of those of a network within it."""
    for layer in config["config"].get("layers", ()):
        yield layer
        yield from layers_of(layer)


def portable(config: dict) -> str:
    """A network's description that older versions of Keras read too, as JSON."""
    text = json.dumps(without_new_settings(config))
    for layer in layers_of(config):  # or an operation may get the name of such a layer
        if layer["module"] == "keras.layers" and layer["class_name"] == "Reshape":
            name = layer["name"].removeprefix("layer_")
            text = text.replace(f'"{layer["name"]}"', f'"layer_{name}"')
    return text


def main(paths: list[str]) -> int:
    """Rewrite the files in place."""
    for path in paths:
        with zipfile.ZipFile(path) as old:
            members = {member: old.read(member) for member in old.infolist()}
        with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as new:
            for member, data in members.items():
                if member.filename == "config.json":
                    data = portable(json.loads(data)).encode()
                new.writestr(member, data)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
