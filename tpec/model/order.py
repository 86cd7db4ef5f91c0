"""The families' names, in the order in which layouts are tried: that of ComfyUI's `comfy/model_detection.py`.

Plain names beside the table (`families`), so that menus and option lists need not load it.
"""

DIFFUSION: tuple[str, ...] = (
    "minimax_music3", "sd3", "cascade", "trellis2", "stable_audio", "auraflow", "hunyuan_dit", "hunyuan_video",
    "flux2", "chroma", "flux", "mochi", "minimax_h3", "ltx", "ace_step", "pixart", "cosmos1", "pixeldit", "z_image",
    "lumina2", "cogvideox", "seedvr2", "wan", "hunyuan3d", "hunyuan3d21", "triposplat", "hidream_o1", "hidream",
    "anima", "cosmos_predict2", "boogu", "omnigen2", "lens", "qwen_image", "ideogram4", "krea2", "kandinsky5",
    "ace_step15", "ernie", "joyimage", "svd", "sdxl", "sd")
TEXT: tuple[str, ...] = (
    "umt5xxl", "t5xxl", "gemma3_12b", "gemma4", "gemma3", "gemma2", "gpt_oss", "qwen25_vl", "qwen35", "qwen3_vl",
    "qwen3", "mistral", "llama")


def family_names() -> tuple[str, ...]:
    """The values of the `family` setting."""
    return ("auto", *DIFFUSION, *TEXT)
