"""The README's example and the docstrings' examples run as they are printed."""

import doctest
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import zoo

from cos_ext import functional

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_examples_run(monkeypatch, capsys, tmp_path):
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("the README is not installed")
    own, torchvision_style = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(own, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "converted" in out and "[4, 100, 10]" in out and "samples" in out

    # torchvision is an extra: a network of its style stands for it.
    stand_in = types.ModuleType("torchvision")
    stand_in.models = types.SimpleNamespace(
        resnet18=lambda: zoo.prepared("readme", lambda: zoo.ResNet(zoo.BasicBlock, max_pool=True))
    )
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(torchvision_style, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert all(status in out for status in ("converted", "kept", "folded", "moved"))
    x = names["batches"][0]
    assert torch.equal(names["again"](x), names["network"](x))


def test_docstring_examples():
    result = doctest.testmod(functional, extraglobs={"torch": torch})
    assert result.attempted >= 3 and result.failed == 0
