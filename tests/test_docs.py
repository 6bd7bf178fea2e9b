"""The documentation is valid: links, commands, blocks of Python, examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fewshot_ad
from fewshot_ad import cli
from fewshot_ad.arguments import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MODULES = sorted(m.name for m in pkgutil.walk_packages(fewshot_ad.__path__, "fewshot_ad.") if not m.ispkg)


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, like GitHub's."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_are_valid(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        # Pages of examples are generated from the scripts.
        if re.match(r"[a-z]+:", target) or name == "auto_examples/index.rst":
            continue
        name = re.sub(r"^auto_examples/(.*)\.rst$", r"../examples/\1.py", name)
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=by_name)
def test_python_blocks_are_valid(page):
    for block in blocks(page, "python"):
        compile(block, by_name(page), "exec")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # about an image that is missing on purpose
def test_user_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(ROOT / "docs" / "user_guide.md", "python"):
        exec(block, names)
    assert {"model.fsad", "report.html"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the page's commands are for a POSIX shell")
def test_first_steps_run(tmp_path, monkeypatch, capfd):
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    shutil.copy(ROOT / "examples" / "score_onnx.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    page = (ROOT / "docs" / "first_steps.md").read_text(encoding="utf-8")
    steps = re.findall(r"^```python\n(.*?)^```|^ {4}(\S[^\n]*)$", page, re.M | re.S)
    steps = [(code, line) for code, line in steps if "pip install" not in line]
    assert len(steps) == 11
    for code, line in steps:
        if code:
            exec(code, {})
        elif line.startswith("fewshot-ad"):
            assert cli.main(shlex.split(line)[1:]) == 0
        else:
            subprocess.run(["bash", "-c", line], check=True)
    said = capfd.readouterr().out.splitlines()
    assert {"model.fsad", "scores.csv", "report.html", "model.onnx"} <= {path.name for path in tmp_path.iterdir()}
    assert len((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()) == 1 + 6
    assert sum(line.startswith("{'lam':") for line in said) == 2
    assert sum(line.startswith("images/bad/") for line in said) == 6


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_exist(page):
    text = re.sub(r" *\\\n +", " ", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^ {4}(fewshot-ad .*)$", text, re.M):
        # In README, commands are followed by comments.
        arguments = shlex.split(re.split(r" {3,}", line)[0])[1:]
        assert build_parser().parse_args(arguments).run == arguments[0]


def test_every_module_is_described():
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    package = Path(fewshot_ad.__file__).parent
    assert sorted(listed) == sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))


def test_public_names_are_in_the_reference():
    listed = re.findall(r"^   ([\w.]+)$", (ROOT / "docs" / "api.rst").read_text(), re.M)
    assert set(fewshot_ad.__all__) - {"__version__"} <= set(listed)
    for name in listed:
        module, _, attribute = f"fewshot_ad.{name}".rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", sorted(set(fewshot_ad.__all__) - {"__version__"}))
def test_main_names_have_examples(name):
    assert doctest.DocTestFinder(recurse=False).find(getattr(fewshot_ad, name))[0].examples
