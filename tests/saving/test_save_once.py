"""What the save nodes remember: each file is written once, again when somebody changed it, and not without end."""

from pathlib import Path

from nodes.saving import save_once


def save(folder: Path, name: str, calls: list[str], content: str = "what it holds") -> Path:
    def write() -> Path:
        calls.append(name)
        (folder / name).write_text(content)
        return folder / name

    return save_once.save_once(("node", name), content, write)


def test_saved_once_and_again_when_it_is_gone(tmp_path: Path) -> None:
    calls: list[str] = []
    first = save_once.fingerprint("node", "a")
    path = save(tmp_path, "a", calls)
    assert save(tmp_path, "a", calls) == path
    assert calls == ["a"]
    assert save_once.stands(("node", "a"))
    assert save_once.fingerprint("node", "a") == first
    path.unlink()
    assert not save_once.stands(("node", "a"))
    assert save_once.fingerprint("node", "a") != first
    save(tmp_path, "a", calls)
    assert calls == ["a", "a"]


def test_other_content_is_saved(tmp_path: Path) -> None:
    calls: list[str] = []
    save(tmp_path, "b", calls)
    save(tmp_path, "b", calls, "something else")
    assert calls == ["b", "b"]


def test_memory_of_it_is_bounded(tmp_path: Path) -> None:
    """A server that runs for weeks saves under ever new names; those used last are remembered."""
    calls: list[str] = []
    save(tmp_path, "often", calls)
    for number in range(save_once._MOST + 10):
        save(tmp_path, str(number), calls)
        if number % 100 == 0:
            save(tmp_path, "often", calls)
    assert calls.count("often") == 1
    assert len(save_once._saved) == save_once._MOST
    assert save_once.stands(("node", "often"))
    assert not save_once.stands(("node", "0"))
