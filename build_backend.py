"""In-tree PEP 517 backend: setuptools, building against the torch that is installed where cos_ext
will run.

pip builds in an isolated environment that hides the installed torch. Building there against
another, newly downloaded torch costs gigabytes, and its CUDA version need not be the installed one.
So the installed torch is made visible again, and torch is asked for only where there is none.
"""

import importlib.util
import site
import sys
import sysconfig
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  (the hooks this file does not change)


def _hosting_folders() -> list[str]:
    """Where the environment that hosts an isolated build keeps its packages."""
    paths = sysconfig.get_paths()
    folders = [paths["purelib"], paths["platlib"]]
    settings = Path(sys.prefix, "pyvenv.cfg")
    in_venv = sys.prefix != sys.base_prefix
    if not in_venv:
        folders.append(site.getusersitepackages())
    elif (
        settings.is_file() and "include-system-site-packages = true" in settings.read_text().lower()
    ):
        outer = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
        folders += [outer["purelib"], outer["platlib"]]
    return folders


def _installed_torch() -> bool:
    """Whether torch can be imported, after putting the hosting environment's packages behind the
    isolated ones.
    """
    if importlib.util.find_spec("torch"):
        return True
    for folder in _hosting_folders():
        if (Path(folder) / "torch" / "version.py").is_file() and folder not in sys.path:
            sys.path.append(folder)
    importlib.invalidate_caches()
    return importlib.util.find_spec("torch") is not None


# setuptools' own versions of these hooks run setup.py, which needs what they are asked for.
def get_requires_for_build_wheel(config_settings=None):
    return [] if _installed_torch() else ["torch>=2.11"]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings=None):
    return []


_installed_torch()
