"""What of a node's outputs the present prompt uses."""


def linked_outputs(prompt, node_id: str) -> set[int]:
    """The outputs of a node that some node of the prompt uses; `prompt` is ComfyUI's hidden dynprompt."""
    linked = set()
    for other in prompt.all_node_ids():
        for value in prompt.get_node(other)["inputs"].values():
            if isinstance(value, list) and len(value) == 2 and value[0] == node_id:
                linked.add(value[1])
    return linked
