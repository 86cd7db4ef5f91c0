"""TPECSaveCalibration and TPECLoadCalibration: keep statistics, to quantize again or to add to them later."""

import os
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from ..tpec.files.publish import IF_EXISTS
from .host.paths import (
    CALIBRATION_FOLDER,
    calibration_root,
    listed_names,
    listed_path,
    loader_name,
)
from .schema.sockets import CALIBRATION, CATEGORY

if TYPE_CHECKING:
    from .handles import CalibrationHandle


class TPECSaveCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECSaveCalibration",
            display_name="Save TPEC Calibration",
            category=CATEGORY,
            description="Keeps a calibration in output/tpec_calibration, for other settings, for later, "
                        "or for the command line.",
            search_aliases=["save calibration", "tpec"],
            inputs=[
                CALIBRATION.Input("calibration"),
                io.String.Input("name", default="my_model_calibration"),
                io.Combo.Input("if_exists", options=list(IF_EXISTS), default="number"),
            ],
            outputs=[io.String.Output("file_name")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str = "a") -> bool | str:
        from .saving.containment import safe_parts

        # Before the sampling, not after it.
        try:
            safe_parts(name)
        except TpecError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, calibration, name: str, if_exists: str) -> str:
        from .saving.save_once import fingerprint

        return fingerprint("TPECSaveCalibration", name, if_exists)

    @classmethod
    def execute(cls, calibration: "CalibrationHandle", name: str, if_exists: str) -> io.NodeOutput:
        from ..tpec.files.publish import publish
        from .saving.containment import save_target
        from .saving.save_once import file_state, save_once

        root = calibration_root()
        source = calibration.file()
        # A saved calibration that was loaded keeps its path when it is written anew.
        path = save_once(("TPECSaveCalibration", name, if_exists), f"{source}|{file_state(source)}",
                         lambda: publish(source, save_target(root, name), if_exists))
        name = loader_name(CALIBRATION_FOLDER, root, path)
        return io.NodeOutput(name, ui=ui.PreviewText(f"Saved as {name}\nin output/{CALIBRATION_FOLDER}"))


class TPECLoadCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECLoadCalibration",
            display_name="Load TPEC Calibration",
            category=CATEGORY,
            description="Loads a calibration from output/tpec_calibration.",
            search_aliases=["load calibration", "tpec"],
            inputs=[io.Combo.Input("name", options=listed_names(CALIBRATION_FOLDER))],
            outputs=[CALIBRATION.Output("calibration"), io.String.Output("summary")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        state = os.stat(listed_path(CALIBRATION_FOLDER, name))
        return f"{name}|{state.st_size}|{state.st_mtime_ns}"

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        from ..tpec.statistics.storage import open_calibration
        from .handles import CalibrationHandle

        path = listed_path(CALIBRATION_FOLDER, name)
        summary = open_calibration(path).summary()
        return io.NodeOutput(CalibrationHandle(path, summary), summary)
