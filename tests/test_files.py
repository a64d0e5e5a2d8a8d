"""Writing files: complete or not there, for every saver of the package. What is in the files is
tested where they are made.
"""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import cos_ext
from cos_ext import _files
from cos_ext._files import check_target, replacing, write_text
from cos_ext.calibration.threshold_files import save_thresholds


def network(path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    cos_ext.convert(model, timesteps=4, thresholds={"1": 1.0}).save(path)


def thresholds(path):
    save_thresholds({"1": torch.ones(8)}, path)


def report(path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    network = cos_ext.convert(model, timesteps=4, thresholds={"1": 1.0})
    network.statistics([torch.randn(2, 4)]).to_json(path)


def table(path):
    from cos_ext.analysis.files import write_csv

    write_csv(path, ["a"], [[1]])


SAVERS = [network, thresholds, report, table]


@pytest.fixture(params=SAVERS, ids=lambda saver: saver.__name__)
def saver(request):
    return request.param


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_savers_follow_no_links_and_delete_nothing_of_others(saver, tmp_path):
    victim, part = tmp_path / "victim", tmp_path / "file.part"
    victim.write_text("mine")
    part.symlink_to(victim)
    saver(tmp_path / "file")
    assert victim.read_text() == "mine" and part.is_symlink()
    assert names(tmp_path) == ["file", "file.part", "victim"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_savers_respect_the_umask(saver, mask, tmp_path):
    before = os.umask(mask)
    try:
        saver(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_savers_write_where_a_link_leads(saver, tmp_path):
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "file"
    target.parent.mkdir()
    link.symlink_to("elsewhere/file")  # to nothing yet, which open(link, "w") would make
    saver(link)
    assert link.is_symlink() and target.stat().st_size > 0 and names(target.parent) == ["file"]


def test_savers_write_into_a_pipe(saver, tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    saver(pipe)
    reader.join(20)
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and len(received[0]) > 2
    assert names(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_savers_leave_a_device_a_device(saver, tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except PermissionError:
        pytest.skip("no devices here")
    saver(device)
    assert stat.S_ISCHR(device.lstat().st_mode) and names(tmp_path) == ["null"]


def test_savers_leave_nothing_on_a_full_disk(saver, tmp_path):
    kept = tmp_path / "file"
    kept.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large|No space"):
            saver(kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert kept.read_text() == "before" and names(tmp_path) == ["file"]


def test_a_full_device_is_an_os_error():
    with pytest.raises(OSError, match="No space") as caught:
        write_text("/dev/full", "text")
    assert caught.value.errno == errno.ENOSPC


def test_an_open_file_is_written_into(tmp_path):
    """/dev/stdout is a link to a file here, whose name must stay with what the shell opened."""
    out = tmp_path / "out"
    code = "from cos_ext._files import write_text; write_text('/dev/stdout', 'text')"
    with open(out, "wb") as file:
        number = os.fstat(file.fileno()).st_ino
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, timeout=60)
    assert out.read_text() == "text" and out.stat().st_ino == number


def test_writers_at_once_never_raise(tmp_path):
    """Each puts a whole file into place; pairs come from one of them."""
    paths, errors = (tmp_path / "record", tmp_path / "weights"), []

    def write(text):
        try:
            for _ in range(30):
                with replacing(*paths) as parts:
                    for part in parts:
                        part.write_text(text * 1000)
                write_text(tmp_path / "alone", text * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and names(tmp_path) == ["alone", "record", "weights"]
    record, weights = (path.read_text() for path in paths)
    assert record == weights and record in {text * 1000 for text in "abc"}
    assert (tmp_path / "alone").read_text() in {text * 1000 for text in "abc"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), ValueError])
def test_an_interrupted_writer_leaves_what_was_there(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(error if isinstance(error, type) else type(error)), replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "before" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("existing", [(), ("a",), ("a", "b", "c")])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_files_appear_together_or_not_at_all(existing, failing, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "abc"]
    for name in existing:
        (tmp_path / name).write_text("before")
    real = os.replace

    def replace(source, target):
        if Path(target) == paths[failing] and Path(source).read_text() == "after":
            raise OSError(errno.EBUSY, "busy")
        real(source, target)

    monkeypatch.setattr(_files.os, "replace", replace)
    with pytest.raises(OSError, match="busy"), replacing(*paths) as parts:
        for part in parts:
            part.write_text("after")
    assert names(tmp_path) == list(existing)
    assert {(tmp_path / name).read_text() for name in existing} <= {"before"}


def test_the_new_file_is_empty_has_the_suffix_and_lies_beside(tmp_path):
    with replacing(tmp_path / "figure.png") as part:
        assert part.parent == tmp_path and part.suffix == ".png" and part.stat().st_size == 0
    assert names(tmp_path) == ["figure.png"]


def test_one_path_twice_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("file")
    with (
        pytest.raises(ValueError, match="path of its own"),
        replacing(tmp_path / "file", tmp_path / "link"),
    ):
        pass
    assert names(tmp_path) == ["link"]


BAD = {
    "folder": ("", IsADirectoryError, "is a folder"),
    "no folder": ("none/file", FileNotFoundError, "does not exist"),
    "below a file": ("file/file", NotADirectoryError, "ot a "),
    "ends like a folder": ("new/", IsADirectoryError, "folder"),
    "long": ("x" * 300, OSError, "too long"),
    "loop": ("loop", OSError, "symbolic"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_targets_are_known_before_the_work(case, tmp_path):
    name, error, words = BAD[case]
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    path = f"{tmp_path}/{name}"
    with pytest.raises(error, match=words) as caught:
        check_target(path)
    assert caught.value.filename == path
    with pytest.raises(error), replacing(path):
        raise AssertionError("the work has begun")
    assert names(tmp_path) == ["file", "loop"]


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_may_not_be_written_is_refused(locked, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("before")
    denied = {"file": path, "folder": tmp_path}[locked]
    real = os.access  # root may write everywhere
    monkeypatch.setattr(_files.os, "access", lambda at, mode: Path(at) != denied and real(at, mode))
    with pytest.raises(PermissionError, match="may not be written"):
        check_target(path)


def test_a_figure_gets_its_suffix_as_matplotlib_gives_it(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = pyplot.figure()
    for name in ("a", "b.svg"):
        _files.write_figure(tmp_path / name, figure)
    pyplot.close(figure)
    assert names(tmp_path) == ["a.png", "b.svg"]
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
