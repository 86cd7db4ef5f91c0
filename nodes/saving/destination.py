"""Where a save node will write, found out before any of the work whose result it saves."""

from pathlib import Path

from ...tpec.errors import TpecError
from ...tpec.files.checkpoint import open_checkpoint
from ...tpec.files.replace import exists
from ...tpec.model.plan import make_plan
from ...tpec.settings import Settings, part_names
from ..host.paths import free_bytes, hidden_by, save_root, source_path
from .containment import save_target

#: Links are followed up to the nodes that choose a model, by this many nodes at most.
_FAR = 20


def destination(kind: str, folder: str, filename: str) -> Path:
    """The checked path of a file to be saved. Raises TpecError when it cannot be, or would not be found afterwards."""
    root = save_root(kind, folder)
    target = save_target(root, filename)
    other = hidden_by(kind, root, target)
    if other:
        raise TpecError(f"ComfyUI's loaders would find '{other}' under this name first: choose a different name.")
    return target


def refuse_taken(target: Path, more: str) -> None:
    """Raises TpecError when there is something of this name; `more` says what that means for the work."""
    if exists(target, "written"):
        raise TpecError(f"{target.name} exists already in {target.parent.name}: choose another name, or set if_exists "
                        f"to number or overwrite. {more}")


def room_left(target: Path) -> str:
    """A few words on the disk's free space."""
    free = free_bytes(target.parent)
    return "" if free is None else f"{free / 1e9:.0f} GB free there"


def kind_of_result(prompt, node_id: str, name: str) -> str | None:
    """ComfyUI's folder name for what will come in at input `name` of a node; None when the prompt does not tell.

    `prompt` is ComfyUI's hidden dynprompt.
    """
    wish: dict = {}
    for _ in range(_FAR):
        link = prompt.get_node(node_id)["inputs"].get(name)
        if not isinstance(link, list):
            return None
        node_id = link[0]
        node = prompt.get_node(node_id)
        if node["class_type"] == "TPECLoadCheckpoint":
            return _kind_of_file(node["inputs"], wish)
        if node["class_type"] == "TPECQuantizeFP8":
            wish = node["inputs"]
        if node["class_type"] == "TPECModelSource":
            return "diffusion_models"
        links = [key for key, value in node["inputs"].items() if isinstance(value, list)]
        name = "checkpoint" if "checkpoint" in links else links[0] if len(links) == 1 else ""
    return None


def _kind_of_file(inputs: dict, wish: dict) -> str | None:
    """The kind of what is made of the file that `inputs` chooses, with the inputs `wish` of the quantize node."""
    part, only_part = wish.get("part", ""), wish.get("only_part", False)
    if not isinstance(part, str) or not isinstance(only_part, bool):  # linked: not known yet
        return None
    try:
        checkpoint = open_checkpoint(source_path(str(inputs["checkpoint"])))
        settings = Settings(family=inputs.get("family", "auto"), part=part_names(part), only_part=only_part)
        return make_plan(checkpoint, settings).kind
    except (TpecError, OSError, KeyError):  # said by the nodes that read the file
        return None
