"""A real ComfyUI as a child process, and a client for its HTTP routes; nothing but the standard library."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACK = "tpec-fp8"
TINYFLUX = "tinyflux_shapes_bf16.safetensors"
_NEEDS = "import torch, aiohttp, yaml, einops, torchsde, transformers, comfy_kitchen"


def find_comfy() -> Path | None:
    """COMFYUI_PATH, else where comfy-cli installs it."""
    for path in (os.environ.get("COMFYUI_PATH"), Path.home() / "comfy" / "ComfyUI"):
        if path and Path(path, "main.py").is_file():
            return Path(path)
    return None


def find_python(comfy: Path) -> str | None:
    """COMFYUI_PYTHON, else a virtual environment in or beside ComfyUI, else this Python if it has what is needed."""
    if os.environ.get("COMFYUI_PYTHON"):
        return os.environ["COMFYUI_PYTHON"]
    for folder in (comfy, comfy.parent):
        for name in ("venv", ".venv"):
            for program in (folder / name / "bin" / "python", folder / name / "Scripts" / "python.exe"):
                if program.is_file():
                    return str(program)
    fit = subprocess.run([sys.executable, "-c", _NEEDS], capture_output=True, check=False).returncode == 0
    return sys.executable if fit else None


def shared_models() -> Path | None:
    """The folder with the small trained model; TPEC_SHARED_MODELS, else ../shared/models/tinyflux-shapes."""
    folder = Path(os.environ.get("TPEC_SHARED_MODELS") or REPOSITORY.parent / "shared" / "models" / "tinyflux-shapes")
    return folder if (folder / TINYFLUX).is_file() else None


class PromptRefused(Exception):
    """ComfyUI's validation found faults; `faults` are its sentences."""

    def __init__(self, answer: dict) -> None:
        self.faults = [f"{error['message']}: {error['details']}"
                       for node in answer.get("node_errors", {}).values() for error in node["errors"]]
        self.nodes = {node["class_type"] for node in answer.get("node_errors", {}).values()}
        super().__init__("; ".join(self.faults) or str(answer))


@dataclass
class Outcome:
    """What became of a prompt."""

    prompt_id: str
    status: str
    outputs: dict[str, dict]
    messages: list[list] = field(repr=False)
    seconds: float

    @property
    def error(self) -> str | None:
        """The exception's message, None without one."""
        for name, facts in self.messages:
            if name == "execution_error":
                return facts["exception_message"].strip()
        return None

    @property
    def failed_node(self) -> str | None:
        return next((facts["node_type"] for name, facts in self.messages if name == "execution_error"), None)

    @property
    def done(self) -> set[str]:
        """The nodes that had ended, from the cache or by running, when one failed."""
        return {node for name, facts in self.messages if name == "execution_error" for node in facts["executed"]}

    @property
    def interrupted(self) -> bool:
        return any(name == "execution_interrupted" for name, _ in self.messages)

    @property
    def cached(self) -> set[str]:
        return {node for name, facts in self.messages if name == "execution_cached" for node in facts["nodes"]}

    def text(self, node: str) -> str:
        return "".join(self.outputs[node]["text"])


class ComfyServer:
    """Starts ComfyUI on a free port with `base` as its base directory.

    On the CPU unless told otherwise, by `cpu` or for all servers by COMFYUI_GPU=1.
    """

    def __init__(self, comfy: Path, python: str, base: Path, cpu: bool | None = None) -> None:
        self.base = base
        self.models = base / "models"
        self.output = base / "output"
        self.temp = base / "temp"
        self.extra = base / "another disk"
        self.log_path = base / "server.log"
        self._comfy, self._python = comfy, python
        self.cpu = os.environ.get("COMFYUI_GPU") != "1" if cpu is None else cpu
        self._process: subprocess.Popen | None = None
        self._url = ""

    @property
    def keeps_originals(self) -> bool:
        """Whether models stay in memory as their files have them, whatever weight_dtype says: it is applied in use."""
        return "DynamicVRAM support detected and enabled" in self.log()

    def __enter__(self) -> "ComfyServer":
        for name in ("diffusion_models", "checkpoints", "text_encoders"):
            (self.models / name).mkdir(parents=True, exist_ok=True)
        for name in ("custom_nodes", "input", "output", "another disk/unet", "another disk/text"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        more = self.base / "more.yaml"
        more.write_text(json.dumps({"other": {"base_path": str(self.extra), "diffusion_models": "unet",
                                              "text_encoders": "text"}}), "utf-8")
        link(REPOSITORY, self.base / "custom_nodes" / PACK)
        link(REPOSITORY / "tests" / "comfy" / "helper_nodes", self.base / "custom_nodes" / "test_helpers")
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [self._python, "-u", "main.py", "--port", str(port), "--base-directory", str(self.base),
                   "--database-url", f"sqlite:///{self.base / 'comfy.db'}", "--disable-api-nodes",
                   "--extra-model-paths-config", str(more),
                   "--use-pytorch-cross-attention", *(["--cpu"] if self.cpu else ["--fp32-text-enc"])]
        # One thread unless told otherwise: on a busy machine small matrices spend their time waiting for each other.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(command, cwd=self._comfy, env=environment, stdout=log, stderr=log)
        self._wait_until_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def address(self) -> str:
        return self._url

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")

    def wait_for_log(self, words: str, start: int, seconds: float = 240) -> None:
        """Until `words` stand in the log behind its first `start` characters."""
        end = time.monotonic() + seconds
        while words not in self.log()[start:]:
            if time.monotonic() > end:
                raise TimeoutError(f"The log did not say '{words}' within {seconds} s:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def _wait_until_up(self, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at its start:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not answer within {seconds} s:\n{self.log()[-4000:]}")

    def request(self, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        call = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> object:
        return json.loads(self.request(path))

    def choices(self, node: str, name: str) -> list[str]:
        """The values of a combo input."""
        inputs = self.get(f"/object_info/{node}")[node]["input"]
        kind, *options = {**inputs["required"], **inputs.get("optional", {})}[name]
        return kind if isinstance(kind, list) else options[0]["options"]

    def queue(self, prompt: dict) -> str:
        """Hand in an API prompt; raises PromptRefused when validation fails."""
        try:
            answer = json.loads(self.request("/prompt", {"prompt": prompt}))
        except urllib.error.HTTPError as error:
            raise PromptRefused(json.loads(error.read())) from None
        if answer.get("node_errors"):
            raise PromptRefused(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 240) -> Outcome:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                entry = history[prompt_id]
                status = entry["status"]
                return Outcome(prompt_id, status["status_str"], entry["outputs"], status["messages"],
                               time.monotonic() - start)
            time.sleep(0.1)
        raise TimeoutError(f"The prompt did not end within {seconds} s:\n{self.log()[-3000:]}")

    def run(self, prompt: dict, seconds: float = 240) -> Outcome:
        return self.wait(self.queue(prompt), seconds)

    def succeed(self, prompt: dict, seconds: float = 240) -> Outcome:
        outcome = self.run(prompt, seconds)
        assert outcome.status == "success", f"{outcome.failed_node}: {outcome.error}\n{self.log()[-3000:]}"
        return outcome

    def interrupt(self) -> None:
        self.request("/interrupt", {})


def link(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where the system allows none."""
    if target.exists():
        return
    try:
        target.symlink_to(source)
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.safetensors"))
        else:
            shutil.copy2(source, target)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
