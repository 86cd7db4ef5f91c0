"""ComfyUI adapters of the engine: paths, progress, interrupt, memory, MODEL objects. No numerics."""
