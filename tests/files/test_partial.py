"""The working file and its journal."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import names_in, save_flux, small_disk

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.layout import Layout
from tpec.files.partial import Journal, SpoolFile, create, discard, finish, finished, journal_paths, partial_path
from tpec.model.formats import make_layout
from tpec.model.plan import make_plan
from tpec.settings import Settings


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    folder = tmp_path / "source"
    folder.mkdir()
    return make_layout(make_plan(open_checkpoint(save_flux(folder)), Settings()), {})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "q[1]*.safetensors"


def test_fresh_file_has_its_size_header_and_constants(layout: Layout, output: Path) -> None:
    create(output, layout)
    content = partial_path(output).read_bytes()
    assert len(content) == layout.nbytes
    assert content.startswith(layout.header)
    for name, constant in layout.constants.items():
        entry = layout.entries[name]
        assert content[entry.start:entry.start + entry.nbytes] == constant
    assert not output.exists()


def test_writes_go_to_their_place(layout: Layout, output: Path) -> None:
    create(output, layout)
    entry = layout.entries["img_in.weight"]
    with SpoolFile(output, layout) as spool:
        spool.write("img_in.weight", b"abc", 5)
        spool.write("img_in.weight", memoryview(b"de"), 8)
    assert partial_path(output).read_bytes()[entry.start + 5:entry.start + 10] == b"abcde"


@pytest.mark.parametrize(("data", "from_end"), [(b"xy", -1), (b"x", 0), (b"", 1), (memoryview(bytes(8)).cast("i"), -7)])
def test_write_past_its_tensor_is_refused(layout: Layout, output: Path, data: bytes, from_end: int) -> None:
    create(output, layout)
    before = partial_path(output).read_bytes()
    size = layout.entries["img_in.weight"].nbytes
    with SpoolFile(output, layout) as spool:
        for offset in (size + from_end, -1):
            with pytest.raises(TpecError, match="'img_in.weight' would be written outside its place"):
                spool.write("img_in.weight", data, offset)
        assert partial_path(output).read_bytes() == before
        spool.write("img_in.weight", b"x" * size)
        spool.write("img_in.weight", b"", size)


def test_finish_gives_the_name_and_cleans_up(layout: Layout, output: Path) -> None:
    create(output, layout)
    with SpoolFile(output, layout) as spool:
        journal = Journal(output, "job", 0, spool)
        journal.flush()
        journal.close()
    assert names_in(output.parent) == {f"{output.name}.partial", f"{output.name}.partial.journal0"}
    finish(output)
    assert names_in(output.parent) == {output.name}


def test_journal_tells_what_is_done_after_the_flush_only(layout: Layout, output: Path) -> None:
    create(output, layout)
    with SpoolFile(output, layout) as spool:
        journals = [Journal(output, "job", lane, spool) for lane in range(2)]
        assert finished(output, layout, "job") is None
        journals[0].record("a", 1, {"x": 1})
        journals[1].record("b", 1)
        journals[0].flush()
        assert finished(output, layout, "job") == {"a": {"x": 1}}
        journals[1].flush()
        assert finished(output, layout, "job") == {"a": {"x": 1}, "b": None}
        for journal in journals:
            journal.close()
    with pytest.raises(TpecError, match="a setting changed"):
        finished(output, layout, "another job")
    assert len(journal_paths(output)) == 2
    discard(output)
    assert names_in(output.parent) == set()
    assert finished(output, layout, "job") is None


@pytest.mark.parametrize("garbage", ['{"done": "b", "fa', '{"done": "b", "facts": null}', "\0" * 30, "\0\n\0"])
def test_cut_line_does_not_swallow_what_the_next_run_notes(layout: Layout, output: Path, garbage: str) -> None:
    """Killed within a line, resumed, killed again: the third run knows everything that either had finished."""
    create(output, layout)

    def run(name: str) -> None:
        with SpoolFile(output, layout) as spool:
            journal = Journal(output, "job", 0, spool)
            journal.record(name, 1)
            journal.flush()
            journal.close()

    run("a")
    with open(journal_paths(output)[0], "a") as file:
        file.write(garbage)
    assert finished(output, layout, "job") == {"a": None}
    run("c")
    run("d")
    assert finished(output, layout, "job") == {"a": None, "c": None, "d": None}


@pytest.mark.parametrize("line", ['{"done": "b"}', '{"done": "b", "facts": 3}', '{"done": 3, "facts": null}', "{}"])
def test_whole_line_that_is_not_the_journals_ends_it(layout: Layout, output: Path, line: str) -> None:
    create(output, layout)
    with SpoolFile(output, layout) as spool:
        journal = Journal(output, "job", 0, spool)
        journal.record("a", 1)
        journal.flush()
        journal.close()
    with open(journal_paths(output)[0], "a") as file:
        file.write(line + "\n")
    assert finished(output, layout, "job") == {"a": None}


def test_journal_syncs_after_so_many_bytes(layout: Layout, output: Path) -> None:
    create(output, layout)
    with SpoolFile(output, layout) as spool:
        journal = Journal(output, "job", 0, spool, sync_bytes=100)
        journal.record("a", 60)
        assert finished(output, layout, "job") is None
        journal.record("b", 60)
        assert finished(output, layout, "job") == {"a": None, "b": None}
        journal.close()


def test_folder_in_the_way_is_one_sentence(layout: Layout, output: Path) -> None:
    partial_path(output).mkdir()
    with pytest.raises(TpecError, match="cannot be written"):
        create(output, layout)
    with pytest.raises(TpecError, match="cannot be written: No such file"):
        finish(output.with_name("another"))
    with pytest.raises(TpecError, match="cannot be written: No such file"):
        create(output.parent / "none" / "q", layout)


def test_finish_over_a_folder_is_one_sentence_and_keeps_the_work(layout: Layout, output: Path) -> None:
    create(output, layout)
    output.mkdir()
    with pytest.raises(TpecError, match="cannot be written: Is a directory|cannot be written: Access is denied"):
        finish(output)
    assert partial_path(output).stat().st_size == layout.nbytes


def test_bytes_that_are_no_text_end_the_journal(layout: Layout, output: Path) -> None:
    create(output, layout)
    with SpoolFile(output, layout) as spool:
        journal = Journal(output, "job", 0, spool)
        journal.record("a", 1)
        journal.flush()
        journal.close()
    with open(journal_paths(output)[0], "ab") as file:
        file.write(b"\xff\xfe\n")
    assert finished(output, layout, "job") == {"a": None}


def test_names_of_others_are_left_alone(layout: Layout, output: Path) -> None:
    neighbour = output.with_name("q1x.safetensors.partial.journal0")
    neighbour.write_text("not mine")
    create(output, layout)
    discard(output)
    assert names_in(output.parent) == {neighbour.name}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "2m") as folder:
        yield folder


def test_disk_that_is_full_only_for_the_journal(layout: Layout, full_disk: Path) -> None:
    """All data found room; the journal's lines do not: one sentence, also when the journal is closed."""
    output = full_disk / "q"
    create(output, layout)
    with SpoolFile(output, layout) as spool:
        journal = Journal(output, "job", 0, spool)
        journal.record("a", 1, {"x": "y" * 10_000})
        with open(full_disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(TpecError, match="is full: make room"):
            journal.flush()
        journal.close()
    discard(output)
    assert names_in(full_disk) == {"filler"}
