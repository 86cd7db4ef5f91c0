"""What ComfyUI's start imports of the pack: prints the number of its nodes, then the pack's modules, one a line."""

import asyncio
import sys

import execution  # noqa: F401 - as ComfyUI's start has it, before any pack
import server  # noqa: F401
from pack import comfy_entrypoint

import nodes  # noqa: F401


async def start() -> int:
    extension = await comfy_entrypoint()
    found = await extension.get_node_list()
    return len([node.GET_SCHEMA() for node in found])


print(asyncio.run(start()))
for name in sorted(sys.modules):
    if name.startswith("pack."):
        print(name.removeprefix("pack."))
