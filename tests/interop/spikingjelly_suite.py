"""SpikingJelly's own tests with this library's neuron in place of its IFNode. A plugin of pytest,
to be run by hand in a checkout of SpikingJelly:

    PYTHONPATH=COS_EXT:COS_EXT/tests/interop \\
        python -m pytest -p spikingjelly_suite test/activation_based

COS_EXT is a checkout of this library. ``--with-theirs`` leaves their neuron where it is, and shows
which tests make one and pass. Tests that make no IFNode are not counted.
"""

from __future__ import annotations

from collections import Counter

import pytest

makes: set[str] = set()
outcomes: dict[str, str] = {}
reasons: dict[str, str] = {}
current = ""


def pytest_addoption(parser):
    parser.addoption("--with-theirs", action="store_true", help="leave their IFNode where it is")


def pytest_configure(config):
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.neuron import integrate_and_fire

    from cos_ext.interop.spikingjelly import IFNode

    kind = neuron.IFNode if config.getoption("--with-theirs") else IFNode
    original = kind.__init__

    def noting(self, *args, **kwargs):
        makes.add(current)
        original(self, *args, **kwargs)

    noting.__wrapped__ = original  # its signature is asked for
    kind.__init__ = noting
    neuron.IFNode = integrate_and_fire.IFNode = kind


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    global current
    current = item.nodeid
    try:
        return (yield)
    finally:
        current = ""


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        outcomes[report.nodeid] = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reasons[report.nodeid] = crash.message.splitlines()[0] if crash else ""


def pytest_terminal_summary(terminalreporter):
    made = sorted(makes - {""})
    count = Counter(outcomes.get(name, "?") for name in made)
    terminalreporter.write_line(f"tests that make an IFNode: {len(made)}, {dict(count)}")
    for name in made:
        if outcomes.get(name) != "passed":
            terminalreporter.write_line(f"  {outcomes.get(name)} {name}: {reasons.get(name, '')}")
