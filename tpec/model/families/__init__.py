"""Model families as data: how each is recognised by its keys, and which of its layers become FP8 and why.

Which modules ComfyUI really gives a scale to was read from its v0.33.0 sources and checked by loading files.
"""

from .detection import Detection, choose_parts, detect, never_read, part_of, recognise, refuse_incomplete
from .family import DROP, KEEP, QUANTIZE, Action, Blocks, Drop, Encoder, Family, Keep, Key, find, fits, pattern, spelled
from .refusals import foreign
from .table import CUSTOM, DIFFUSION, ENCODER_PREFIXES, FAMILIES, GENERIC, PREFIXES, TEXT

__all__ = ["CUSTOM", "DIFFUSION", "DROP", "ENCODER_PREFIXES", "FAMILIES", "GENERIC", "KEEP", "PREFIXES", "QUANTIZE",
           "TEXT", "Action", "Blocks", "Detection", "Drop", "Encoder", "Family", "Keep", "Key", "choose_parts",
           "detect", "find", "fits", "foreign", "never_read", "part_of", "pattern", "recognise",
           "refuse_incomplete", "spelled"]
