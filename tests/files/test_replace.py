"""A part file that becomes the file: whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import names_in, python

from tpec.errors import TpecError
from tpec.files.replace import NameTaken, exists, is_file, is_folder, put_in_place, replacing


@pytest.mark.parametrize("overwrite", [True, False])
def test_new_name(tmp_path: Path, overwrite: bool) -> None:
    with replacing(tmp_path / "q", overwrite) as part:
        assert part.parent == tmp_path
        part.write_text("whole")
        assert names_in(tmp_path) == {part.name}
    assert names_in(tmp_path) == {"q"}
    assert (tmp_path / "q").read_text() == "whole"


def test_taken_name_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "q"
    path.write_text("precious")
    with pytest.raises(NameTaken, match="q exists already"), replacing(path, overwrite=False) as part:
        part.write_text("new")
    assert path.read_text() == "precious"
    assert names_in(tmp_path) == {"q"}
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert names_in(tmp_path) == {"q"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, TpecError("said")])
def test_whatever_stops_the_body_leaves_nothing(tmp_path: Path, error: type) -> None:
    (tmp_path / "q").write_text("precious")
    with pytest.raises(error if isinstance(error, type) else TpecError), replacing(tmp_path / "q") as part:
        part.write_text("half")
        raise error
    assert names_in(tmp_path) == {"q"}
    assert (tmp_path / "q").read_text() == "precious"


def test_what_the_disk_refuses_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TpecError, match="q cannot be written: No such file"), \
            replacing(tmp_path / "none" / "q") as part:
        part.write_text("x")
    with pytest.raises(TpecError, match="nn cannot be written: File name too long"), \
            replacing(tmp_path / ("n" * 300)) as part:
        part.write_text("x")
    assert names_in(tmp_path) == set()


def test_two_names_of_one_file_become_one(tmp_path: Path) -> None:
    """A rename of a file to itself does nothing, so the part would stay."""
    (tmp_path / "q").write_text("x")
    os.link(tmp_path / "q", tmp_path / "q.part")
    put_in_place(tmp_path / "q.part", tmp_path / "q", overwrite=True)
    assert names_in(tmp_path) == {"q"}


def test_two_writers_have_two_part_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "q") as first, replacing(tmp_path / "q") as second:
        first.write_text("1")
        second.write_text("2")
        assert len(names_in(tmp_path)) == 2
    assert (tmp_path / "q").read_text() == "1"


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    process = python("""import os, signal, sys
from pathlib import Path
from tpec.files.replace import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)""", [path])
    process.communicate(timeout=60)
    others = {"a.json.part", f"a.json.abcdef.{process.pid}.abcdef.part"}  # nobody's, and another machine's
    for name in others:
        (tmp_path / name).write_text("other")
    assert len(names_in(tmp_path)) == 3
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert names_in(tmp_path) == {"a.json", *others}
    assert path.read_text() == "first"


def test_what_a_name_is(tmp_path: Path) -> None:
    file, folder, dead = (tmp_path / name for name in ("file", "folder", "dead"))
    file.write_text("x")
    folder.mkdir()
    dead.symlink_to("nothing")
    (tmp_path / "link").symlink_to(folder)
    os.mkfifo(tmp_path / "pipe")
    found = {path.name: (exists(path), is_file(path), is_folder(path)) for path in
             (file, folder, dead, tmp_path / "link", tmp_path / "pipe", tmp_path / "none", file / "below")}
    assert found == {"file": (True, True, False), "folder": (True, False, True), "dead": (False, False, False),
                     "link": (True, False, True), "pipe": (True, False, False), "none": (False, False, False),
                     "below": (False, False, False)}
    assert not exists("a\0b") and not exists("\udcff" if os.name == "nt" else "\ud800")


@pytest.mark.parametrize("ask", [exists, is_file, is_folder])
def test_what_is_not_known_is_no_no(tmp_path: Path, ask: Callable[[Path, str], bool]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in ((tmp_path / "loop", "Too many levels of symbolic links"),
                        (tmp_path / ("n" * 300), "File name too long")):
        with pytest.raises(TpecError, match=f"{path.name} cannot be read: {words}"):
            ask(path)
        with pytest.raises(TpecError, match=f"{path.name} cannot be written: {words}"):
            ask(path, "written")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may enter every folder")
def test_a_locked_folder_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "q").write_text("x")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(TpecError, match="q cannot be read: Permission denied"):
            is_file(tmp_path / "locked" / "q")
    finally:
        (tmp_path / "locked").chmod(0o700)
