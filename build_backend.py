"""In-tree PEP 517 backend: setuptools, building against the torch that is installed where cos_ext will run.

pip builds in an isolated environment that hides the installed torch. Building there against another, newly downloaded
torch costs gigabytes, and its CUDA version need not be the installed one. So the installed torch is made visible again, and
torch is asked for only where there is none.
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the hooks this file does not change)


def _installed_torch() -> bool:
    """Whether torch can be imported, after putting the hosting environment's packages behind the isolated ones."""
    if importlib.util.find_spec("torch"):
        return True
    for key in ("purelib", "platlib"):
        folder = sysconfig.get_paths()[key]
        if (Path(folder) / "torch" / "version.py").is_file() and folder not in sys.path:
            sys.path.append(folder)
    importlib.invalidate_caches()
    return importlib.util.find_spec("torch") is not None


def _torch_requirement() -> list[str]:
    return [] if _installed_torch() else ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_requirement()


def get_requires_for_build_sdist(config_settings=None):
    return _setuptools.get_requires_for_build_sdist(config_settings)


_installed_torch()
