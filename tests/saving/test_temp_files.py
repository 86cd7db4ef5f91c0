"""Files of the temp folder stay as long as somebody holds them, and no longer."""

from pathlib import Path

from nodes.saving.temp_files import Latest, TempFile, hold, keep_with


class Owner:
    pass


def made(path: Path, content: str = "made") -> TempFile:
    path.write_text(content)
    return hold(path)


def test_a_file_goes_with_the_last_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first, second = made(path), hold(path)
    assert first is second and first.intact
    del first
    assert path.is_file()
    del second
    assert not path.exists()


def test_a_file_that_was_made_again_is_the_one_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = made(path)
    path.write_text("another file of this name")
    assert not old.intact
    new = hold(path)
    assert old.intact
    del old
    assert new.intact and path.is_file()


def test_a_name_of_its_own_keeps_the_content(tmp_path: Path) -> None:
    file = made(tmp_path / "file")
    (tmp_path / "saved").hardlink_to(tmp_path / "file")
    del file
    assert (tmp_path / "saved").read_text() == "made" and not (tmp_path / "file").exists()


def test_what_somebody_removed_is_no_error(tmp_path: Path) -> None:
    file = made(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert not file.intact
    del file


def test_a_file_lasts_as_long_as_what_reads_from_it(tmp_path: Path) -> None:
    owner = Owner()
    keep_with(owner, made(tmp_path / "file"))
    assert (tmp_path / "file").is_file()
    del owner
    assert not (tmp_path / "file").exists()


def test_the_latest_are_those_that_were_asked_for_last(tmp_path: Path) -> None:
    latest: Latest[TempFile] = Latest(2, lambda file: file)
    for name in ("a", "b"):
        latest.put(name, made(tmp_path / name))
    assert latest.get("a") is not None
    latest.put("c", made(tmp_path / "c"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"] and latest.get("b") is None
    (tmp_path / "a").write_text("another file of this name")
    assert latest.get("a") is None and latest.get("c") is not None
