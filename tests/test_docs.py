"""Every block of code in README.md and docs/ is run, in the order of its page, or says why it cannot be.

Each page has a folder of its own, so that later blocks may use what earlier ones made. Commands are run as they stand,
with three changes. ``hpcdml`` is this Python's, so that no other installation is tested. Training is capped by
``--max-samples``, since pages show runs of useful lengths: all the rest of a run happens in a few rounds as well. And
jobs have two ranks but in the tutorial, since most of the time of these tests is the start of ranks.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import launch
import pages
from hpcdml.cli import train
from hpcdml.cli.parser import Answer

SECONDS = 600.0  # for a page; others may use the machine
CAPS = {"train": 3000, "resume": 5000}
AS_IT_STANDS = "docs/tutorial.md"
"""The page whose jobs keep their ranks."""
NOT_RUN = 21
"""Blocks that carry a reason for not being run. Whoever adds one changes this number, and knows it."""

ALL = [block for page in pages.pages() for block in pages.blocks(page)]
PYTHON = shlex.quote(sys.executable)


def shell(text: str, ranks: str = "2") -> str:
    """Commands of a page as a test runs them; ``ranks`` is for jobs of more, empty: as they stand."""
    text = text.replace("\\\n", " ")
    if ranks:
        text = re.sub(r"\bmpirun -n \d+ ", f"mpirun -n {ranks} ", text)
    lines = []
    for line in text.splitlines():
        line = re.sub(r"(?<![\w./\[-])hpcdml (?=[a-z-])", f"{PYTHON} -m hpcdml ", line)
        line = re.sub(r"(?<![\w./-])python(?= )", PYTHON, line)
        found = re.search(r"-m hpcdml (train|resume)\b[^#|>&;]*", line)
        if found and "--max-samples" not in found[0] and "--print-config" not in found[0] and "<<" not in line:
            capped = f"{found[0].rstrip()} --max-samples {CAPS[found[1]]} "
            line = line[: found.start()] + capped + line[found.end() :]
        lines.append(line)
    return "set -euo pipefail\n" + "\n".join(lines) + "\n"


def environment() -> Mapping[str, str]:
    """The launcher beside this Python comes first; modules are found in this tree, as the job's folder is another."""
    beside = str(Path(sys.executable).parent)
    return {"PATH": os.pathsep.join([beside, os.environ["PATH"]]), "PYTHONPATH": str(pages.ROOT), "COLUMNS": "100"}


def run(block: pages.Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one block; its failure names the place in the page."""
    ranks = "" if block.page == AS_IT_STANDS else "2"
    bash = ["bash", "-c", shell(block.text, ranks)]
    command = bash if block.language == "bash" else [sys.executable, "-c", block.text]
    done = launch.run(command, env=environment(), timeout=SECONDS, cwd=folder)
    assert done.returncode == 0, f"{block.place}\n{block.text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    print(f"{block.place}\n{block.text}{done.stdout}")
    return done


def heads(text: str) -> set[str]:
    """The first word of each line of output, which is the same every time; lines of figures or of spaces have none."""
    return {line.split()[0] for line in re.split(r"[\r\n]+", text) if re.match(r"[a-z]", line)}


def check_output(block: pages.Block, printed: str) -> None:
    """Each line that a page shows must be one of those that were printed, by its first word: figures differ."""
    missing = heads(block.text) - heads(printed)
    assert not missing, f"{block.place}: {missing} is not in\n{printed}"


@pytest.mark.timeout(SECONDS * 2)
@pytest.mark.parametrize("page", pages.pages())
def test_blocks(page: str, tmp_path: Path, _needs_mpirun: None) -> None:
    printed = ""
    for block in pages.blocks(page):
        if block.mark == "file":
            (tmp_path / block.says).write_text(block.text)
        elif block.mark == "output":
            if not block.says:
                check_output(block, printed)
        elif block.mark != "not run" and block.language in pages.RUNNABLE:
            if block.mark == "before":
                run(pages.Block(page, block.line - 1, "bash", "", "", block.says), tmp_path)
            done = run(block, tmp_path)
            printed = done.stdout + done.stderr


def test_every_block_can_be_told() -> None:
    """No block without a language or with an unknown mark, and no code that is only indented."""
    for page in pages.pages():
        assert not pages.indented(page), f"{page}: indented code in lines {pages.indented(page)}; fence it"
    for block in ALL:
        assert block.language in ("bash", "python", "yaml", "text") or block.language.startswith("{"), block.place
        assert block.mark in ("", *pages.MARKS) or "-->" not in block.mark, block.place
        if block.mark == "not run":
            assert len(block.says) > 10, f"{block.place}: says no reason"
        if block.language == "yaml":
            assert block.mark == "file", f"{block.place}: is not written to a file, so that nothing reads it"


def test_blocks_that_are_not_run_are_counted() -> None:
    marked = [block for block in ALL if block.mark == "not run"]
    tried = [block for block in ALL if block.language in pages.RUNNABLE and block.mark not in ("not run", "file")]
    print(f"{len(tried)} blocks are run, {len(marked)} are not:")
    for block in marked:
        print(f"  {block.place}: {block.says}")
    assert len(marked) == NOT_RUN
    assert len(tried) > len(marked)


@pytest.mark.parametrize("block", [block for block in ALL if block.mark == "options"], ids=lambda block: block.place)
def test_examples_of_options(block: pages.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line's options, up to the explanation, are taken by hpcdml train."""
    monkeypatch.chdir(tmp_path)
    examples = [re.split(r"\s{2,}", line)[0] for line in block.text.splitlines() if line.startswith("--")]
    assert examples
    for example in examples:
        with pytest.raises(Answer):
            train.parse([*shlex.split(example), "--print-config"])


def test_files_of_options(tmp_path: Path) -> None:
    """A page's YAML file is read by hpcdml train."""
    for block in ALL:
        if block.language == "yaml":
            (tmp_path / block.says).write_text(block.text)
            with pytest.raises(Answer):
                train.parse([str(tmp_path / block.says), "--print-config"])


def test_the_pictures_are_what_the_simulator_draws() -> None:
    place = pages.ROOT / "docs" / "draw_method.py"
    spec = importlib.util.spec_from_file_location("draw_method", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.pictures().items():
        assert (place.parent / name).read_text() == text, f"{name}: draw it anew: python docs/draw_method.py"


def test_symptoms_are_messages_of_the_code() -> None:
    """What troubleshooting.md quotes is in the code, but for what stands for names and numbers."""
    sources = "".join(path.read_text() for path in (pages.ROOT / "hpcdml").rglob("*.py"))
    code = re.sub(r"\"\s+f?\"|\{[^{}]*\}", " ", sources)
    code = " ".join(code.split())
    rows = (pages.ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
    quoted = [re.match(r"\| `([^`]+)` \|", row) for row in rows]
    symptoms = [found[1] for found in quoted if found]
    assert len(symptoms) > 10
    for symptom in symptoms:
        for part in re.split(r"\.\.\.|\b(?:N|C|HOST)\b|\bnan\b", symptom):
            words = " ".join(part.split()).strip(" :-")
            assert words in code, f"{symptom!r}: no message has {words!r}"


def test_training_is_capped_and_nothing_else_is_changed() -> None:
    line = "mpirun -n 3 hpcdml train --lr 0.1  # with hpcdml train, as ever"
    assert f"mpirun -n 2 {PYTHON} -m hpcdml train --lr 0.1 --max-samples 3000 # with" in shell(line)
    assert "mpirun -n 3 " in shell(line, "")
    for same in ("hpcdml report runs/latest > report.txt", "cat runs/hpcdml train.txt", "ls hpcdml.sif"):
        assert "--max-samples" not in shell(same)
    assert "--max-samples" not in shell("hpcdml train --lr 0.1 --print-config > run.yaml")
