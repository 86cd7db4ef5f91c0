"""File names from widgets to real paths: only inside ComfyUI's own folders, whatever the prompt says."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...tpec.errors import TpecError
from ...tpec.files.naming import is_model_name, shard_name

SOURCE_FOLDERS = ("diffusion_models", "checkpoints", "text_encoders")
CALIBRATION_FOLDER = "tpec_calibration"

#: Folders whose first registered path is an old name, and the name a new file belongs under.
_OLD_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}
_OUTPUT_NAMES = {"text_encoders": "clip"}


def source_names() -> list[str]:
    """The checkpoint combo: `folder/relative name` of every model; shards as their index, or as the first of them."""
    found: list[str] = []
    for folder in SOURCE_FOLDERS:
        known: dict[Path, dict[str, str]] = {}
        models: dict[object, str] = {}
        for name in folder_paths.get_filename_list(folder):
            if is_model_name(name):
                models.setdefault(*_model_of(folder, name, known))
        found += [f"{folder}/{name}" for name in models.values()]
    return found


def _model_of(folder: str, name: str, known: dict[Path, dict[str, str]]) -> tuple[object, str]:
    """What is equal for all shards of a model, and the name that stands for it; `known` keeps the indexes by folder."""
    shard = shard_name(os.path.basename(name))
    path = folder_paths.get_full_path(folder, name) if shard else None
    if shard is None or path is None:
        return name, name
    place = Path(path).parent
    if place not in known:
        known[place] = {file: index for index, files in _indexes(place).items() for file in files}
    index = known[place].get(os.path.basename(name))
    if index:
        return (place, index), os.path.join(os.path.dirname(name), index)
    return (place, shard.stem, shard.total, shard.ending), name


def _indexes(place: Path) -> dict[str, set[str]]:
    from ...tpec.files.shards import indexes

    try:
        return indexes(place)
    except OSError:  # what is wrong there is said when the model is opened
        return {}


def source_path(choice: str) -> Path:
    """The file behind a checkpoint combo's value. Raises TpecError when it is not one of the list."""
    wanted = choice.replace("\\", "/")
    listed = {name.replace("\\", "/"): name for name in source_names()}
    if wanted not in listed:
        raise TpecError(f"There is no model file '{choice}' in ComfyUI's folders: refresh the list (R), choose again.")
    folder, name = listed[wanted].split("/", 1)
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def calibration_root() -> Path:
    """The output subfolder of calibrations, known to ComfyUI as a folder of its own."""
    root = os.path.join(folder_paths.get_output_directory(), CALIBRATION_FOLDER)
    folder_paths.folder_names_and_paths[CALIBRATION_FOLDER] = ([root], {".safetensors"})
    return Path(root)


def listed_names(folder: str) -> list[str]:
    calibration_root()
    return folder_paths.get_filename_list(folder)


def temp_folder(name: str) -> Path:
    """The pack's folder of this name within ComfyUI's temp folder."""
    folder = Path(folder_paths.get_temp_directory(), "tpec", name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def listed_path(folder: str, name: str) -> Path:
    """The file `name` of a registered folder. Raises TpecError when it is not there."""
    if name not in folder_paths.get_filename_list(folder):
        raise TpecError(f"There is no file '{name}' in the folder {folder}: refresh the list (R) and choose again.")
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def save_roots(kind: str) -> dict[str, Path]:
    """Where new files of `kind` can go, by the save node's choice.

    models: ComfyUI's own models folder; output: the subfolder of the output folder that its loaders list as well; and
    by their paths all other folders that ComfyUI lists files of this kind from, as those of extra_model_paths.yaml.
    """
    output = Path(folder_paths.get_output_directory(), _OUTPUT_NAMES.get(kind, kind))
    registered = [Path(path) for path in folder_paths.get_folder_paths(kind)]
    first = registered[0]
    newer = first.with_name(_OLD_NAMES.get(first.name, first.name))
    own = newer if newer in registered else first
    others = [path for path in registered if path not in (own, output)]
    return {"models": own, "output": output, **{str(path): path for path in others}}


def save_choices() -> list[str]:
    """The choices of the save node for any kind of file."""
    return list(dict.fromkeys(choice for kind in SOURCE_FOLDERS for choice in save_roots(kind)))


def save_root(kind: str, choice: str) -> Path:
    """The folder behind a choice of the save node. Raises TpecError when it is none for this kind of file."""
    roots = save_roots(kind)
    if choice not in roots:
        raise TpecError(f"ComfyUI's loaders do not look for {kind} in the folder '{choice}': "
                        f"choose {', '.join(roots)}.")
    return roots[choice]


def free_bytes(folder: Path) -> int | None:
    """Free space on the disk of a folder that may not exist yet; None where the system does not say."""
    try:
        place = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        return shutil.disk_usage(place).free
    except OSError:
        return None


def free_space(choices: Sequence[str]) -> dict[str, str]:
    """Words on the free space of the save node's choices, where it is the same for every kind of file."""
    roots = [save_roots(kind) for kind in SOURCE_FOLDERS]
    free = {choice: {round((free_bytes(places[choice]) or 0) / 1e9) for places in roots if choice in places}
            for choice in choices}
    return {choice: f"{found.pop()} GB free" for choice, found in free.items() if len(found) == 1}


def hidden_by(kind: str, root: Path, target: Path) -> str | None:
    """The file of the same name in another folder that ComfyUI's loaders would take instead, if any."""
    found = folder_paths.get_full_path(kind, os.path.relpath(target, root))
    if found is None or os.path.realpath(found) == os.path.realpath(target):
        return None
    return found


def loader_name(kind: str, root: Path, target: Path) -> str:
    """The name under which ComfyUI's own loader lists `target`; its list is read afresh."""
    # The list notices changes by folder times, which are too coarse on some disks.
    folder_paths.filename_list_cache.pop(kind, None)
    return os.path.relpath(target, root)
