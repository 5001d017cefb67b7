"""The built-in corpus: the committed files are what the rules make."""

import importlib.util

from real_midi import ROOT

spec = importlib.util.spec_from_file_location("compose", ROOT / "data" / "compose.py")
compose = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compose)


def test_committed_files_are_what_the_rules_make_and_data_readme_says():
    corpus = compose.make_corpus(pieces=120, seed=1)
    assert {path.name: path.read_bytes() for path in (ROOT / "data" / "midi").iterdir()} == {
        name: data for name, (_, data) in corpus.items()}
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, count in compose.counts(corpus).items():
        assert f"| {name} | {count:,} |" in text
