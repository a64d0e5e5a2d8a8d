"""What the README, the site's pages and the docstrings show, runs as it is printed."""

import doctest
import importlib
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import zoo

import cos_ext
from cos_ext import cli, functional
from cos_ext.conversion.rules import base

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if "gallery" not in page.parts and "```python" in page.read_text()
)
# A fenced block, and in the line before its fence, where there is one, why it is not run.
BLOCK = re.compile(
    r"(?:^% not run:(?P<why>.*)\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(path):
    """(language, text, why it is not run or None) of a page's fenced blocks, in order."""
    return [(b["kind"], b["text"], b["why"]) for b in BLOCK.finditer(path.read_text())]


def shape(output):
    """Printed output without what differs between machines: numbers, and their widths."""
    words = re.sub(r"\d+(\.\d+)?", "0", output)
    return re.sub(r"-{2,}|\s+", " ", words).strip()


def run(path, namespace, capsys):
    """Run a page's Python blocks in order; a text block behind one is what it prints."""
    printed = None
    for kind, text, why in blocks(path):
        if kind == "python" and why is None:
            exec(compile(text, path.name, "exec"), namespace)
            printed = capsys.readouterr().out
        elif kind == "python":
            assert why.strip(), f"a block of {path.name} is not run, and no reason is given"
            printed = None
        elif kind == "text" and printed is not None:
            assert shape(text) in shape(printed), (
                f"{path.name} shows\n{text}\nand prints\n{printed}"
            )


def torchvision_stand_in():
    """torchvision is an extra: a network of its style stands for it."""
    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(
        resnet18=lambda **_: zoo.prepared(
            "readme", lambda: zoo.ResNet(zoo.BasicBlock, max_pool=True)
        )
    )
    return module


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """An empty folder to run in, but for the package's own files at the path that pages name."""
    (tmp_path / "cos_ext").symlink_to(ROOT / "cos_ext")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision_stand_in())
    # A page may register a rule; other tests do not see it.
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))


def test_the_readme_examples_run(somewhere, capsys):
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("the README is not installed")
    assert any(kind == "python" for kind, *_ in blocks(readme))
    names = {}
    run(readme, names, capsys)
    if "again" in names:  # a network that was saved and loaded
        x = names["batches"][0]
        assert torch.equal(names["again"](x), names["network"](x))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_a_page_runs(page, somewhere, capsys):
    run(page, {}, capsys)


def test_the_pages_are_there():
    if not DOCS.exists():
        pytest.skip("docs/ is not installed")
    ran = [page for page in PAGES for kind, _, why in blocks(page) if kind == "python" and not why]
    assert len(ran) > 30 and (DOCS / "index.md").exists()


def test_every_public_name_is_in_the_api_reference():
    if not DOCS.exists():
        pytest.skip("docs/ is not installed")
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)(?:\(\))?$", pages, re.M))
    for name in documented:
        module, attribute = name.rsplit(".", 1)
        try:
            getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:  # a module of its own, not an attribute
            importlib.import_module(name)
    public = {
        f"{module.__name__}.{name}"
        for module in (cos_ext, cos_ext.models, cos_ext.data)
        for name in module.__all__
    }
    modules = {
        f"cos_ext.{name}"
        for name in cos_ext.__all__
        if isinstance(getattr(cos_ext, name), types.ModuleType)
    }
    assert public - modules <= documented, f"not in docs/api: {public - modules - documented}"


@pytest.mark.parametrize("command", ["demo", "train", "eval", "bench", "info"])
def test_every_option_is_on_the_command_line_page(command, capsys):
    page = DOCS / "api" / "command_line.md"
    if not page.exists():
        pytest.skip("docs/ is not installed")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    assert options <= set(re.findall(r"--[a-z][a-z-]*", page.read_text()))


def test_docstring_examples():
    result = doctest.testmod(functional, extraglobs={"torch": torch})
    assert result.attempted >= 3 and result.failed == 0
