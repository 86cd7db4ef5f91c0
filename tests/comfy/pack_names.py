"""What scripts that ComfyUI's Python runs use of this pack, by `pack`, which without_server.start has made: import it
after that call. All of them are one pack's, so that their classes are the same.
"""

import importlib

structure_of = importlib.import_module("pack.nodes.host.structure").structure_of
open_checkpoint = importlib.import_module("pack.tpec.files.checkpoint").open_checkpoint
make_plan = importlib.import_module("pack.tpec.model.plan").make_plan
Settings = importlib.import_module("pack.tpec.settings").Settings
quantize = importlib.import_module("pack.tpec.run.pipeline").quantize
