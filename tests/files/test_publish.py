"""A finished file under the user's name: whole or not at all, and nothing of theirs is lost."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import names_in, small_disk

from tpec.errors import TpecError
from tpec.files.publish import publish


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool.safetensors"
    path.write_bytes(os.urandom(200_000))
    return path


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """Another file system, of 256 kB: hard links to it are impossible."""
    with small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_new_name_and_new_folders(tmp_path: Path, spool: Path) -> None:
    target = tmp_path / "models" / "flux" / "q.safetensors"
    assert publish(spool, target) == target
    assert target.read_bytes() == spool.read_bytes()
    assert names_in(target.parent) == {"q.safetensors"}
    assert target.samefile(spool)


def test_spool_may_go_away_afterwards(tmp_path: Path, spool: Path) -> None:
    content = spool.read_bytes()
    target = publish(spool, tmp_path / "q.safetensors")
    spool.unlink()
    assert target.read_bytes() == content


def test_copy_to_another_disk(spool: Path, other_disk: Path) -> None:
    target = publish(spool, other_disk / "q.safetensors")
    assert target.read_bytes() == spool.read_bytes()
    assert not target.samefile(spool)
    assert names_in(other_disk) == {"q.safetensors"}


def test_full_disk_leaves_nothing(spool: Path, other_disk: Path) -> None:
    (other_disk / "filler").write_bytes(bytes(150_000))
    with pytest.raises(TpecError, match="is full: make room"):
        publish(spool, other_disk / "q.safetensors")
    assert names_in(other_disk) == {"filler"}


def test_full_disk_keeps_what_was_there(spool: Path, other_disk: Path) -> None:
    target = other_disk / "q.safetensors"
    target.write_bytes(b"x" * 150_000)
    with pytest.raises(TpecError, match="is full: make room"):
        publish(spool, target, "overwrite")
    assert target.read_bytes() == b"x" * 150_000
    assert names_in(other_disk) == {"q.safetensors"}


def test_existing_file_is_kept_numbered_around_or_replaced(tmp_path: Path, spool: Path) -> None:
    target = tmp_path / "q.safetensors"
    target.write_text("precious")
    with pytest.raises(TpecError, match="q.safetensors exists already"):
        publish(spool, target)
    assert target.read_text() == "precious"
    for number in (2, 3):
        numbered = publish(spool, target, "number")
        assert numbered == tmp_path / f"q_{number}.safetensors"
        assert numbered.read_bytes() == spool.read_bytes()
    assert target.read_text() == "precious"
    assert publish(spool, target, "overwrite") == target
    assert target.read_bytes() == spool.read_bytes()
    assert names_in(tmp_path) == {"spool.safetensors", "q.safetensors", "q_2.safetensors", "q_3.safetensors"}


def test_free_name_is_used_as_it_is(tmp_path: Path, spool: Path) -> None:
    assert publish(spool, tmp_path / "q.safetensors", "number") == tmp_path / "q.safetensors"


def test_publishing_twice_over_itself(tmp_path: Path, spool: Path) -> None:
    target = publish(spool, tmp_path / "q.safetensors")
    assert publish(spool, target, "overwrite") == target
    assert publish(spool, spool, "overwrite") == spool
    assert target.read_bytes() == spool.read_bytes()
    assert names_in(tmp_path) == {"spool.safetensors", "q.safetensors"}


@pytest.mark.parametrize("name", ["n" * 300, "n" * 254, "spool.safetensors/q", "folder"])
@pytest.mark.parametrize("if_exists", ["error", "number", "overwrite"])
def test_impossible_names_are_one_sentence(tmp_path: Path, spool: Path, name: str, if_exists: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("precious")
    before, content = names_in(tmp_path), spool.read_bytes()
    if (name, if_exists) == ("folder", "number"):
        assert publish(spool, tmp_path / name, if_exists).name == "folder_2"
        return
    with pytest.raises(TpecError) as caught:
        publish(spool, tmp_path / name, if_exists)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == before
    assert names_in(tmp_path / "folder") == {"inside"}
    assert spool.read_bytes() == content


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("if_exists", ["error", "number"])
def test_name_that_another_program_takes_meanwhile_is_kept(tmp_path: Path, spool: Path, if_exists: str, links: bool,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken after the last look at the name and before the file gets it."""
    target, sync, link, taken = tmp_path / "q.safetensors", os.fsync, os.link, []

    def take(handle: int) -> None:
        sync(handle)
        if not taken:
            taken.append(target.write_text("theirs"))

    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "fsync", take)
    monkeypatch.setattr(os, "link", link if links else refuse)
    if if_exists == "error":
        with pytest.raises(TpecError, match="q.safetensors (exists already|appeared)"):
            publish(spool, target, if_exists)
    else:
        assert publish(spool, target, if_exists) == tmp_path / "q_2.safetensors"
        assert (tmp_path / "q_2.safetensors").read_bytes() == spool.read_bytes()
    assert taken
    assert target.read_text() == "theirs"
    assert not [name for name in names_in(tmp_path) if name.endswith(".part")]


def test_link_that_points_nowhere_is_not_replaced(tmp_path: Path, spool: Path) -> None:
    target = tmp_path / "q.safetensors"
    target.symlink_to(tmp_path / "gone" / "model.safetensors")
    for if_exists in ("error", "overwrite"):
        with pytest.raises(TpecError, match="is a link that points nowhere .to .*model.safetensors."):
            publish(spool, target, if_exists)
    assert publish(spool, target, "number") == tmp_path / "q_2.safetensors"
    assert target.is_symlink()


def test_missing_spool_and_unknown_choice(tmp_path: Path) -> None:
    with pytest.raises(TpecError, match="cannot be written"):
        publish(tmp_path / "none", tmp_path / "q.safetensors")
    with pytest.raises(TpecError, match="if_exists is 'ask'"):
        publish(tmp_path / "none", tmp_path / "q.safetensors", "ask")
    assert names_in(tmp_path) == set()
