"""The README's example and the docstrings' examples run as they are printed."""

import doctest
import re
from pathlib import Path

import pytest
import torch

from cos_ext import functional

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_example_runs(monkeypatch, capsys):
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("the README is not installed")
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "converted" in out and "[4, 100, 10]" in out and "samples" in out


def test_docstring_examples():
    result = doctest.testmod(functional, extraglobs={"torch": torch})
    assert result.attempted >= 3 and result.failed == 0
