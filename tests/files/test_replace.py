"""A part file that becomes the file: whole or not at all."""

import os
from pathlib import Path

import pytest
from samples import names_in, python

from tpec.errors import TpecError
from tpec.files.replace import NameTaken, put_in_place, replacing


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
