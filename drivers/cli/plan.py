"""The flags of run_plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from utils.flag_groups.texts import TextSettingFlags
from utils.flag_values import Group, flag
from utils.flags import ProgramFlags


@dataclass(frozen=True, kw_only=True)
class PlanFlags(TextSettingFlags, ProgramFlags):
    """Look at a raw collection, a model and the machine, and choose the settings of a run."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = "python -m drivers.run_plan --data_dir raw --model_name_or_path MODEL --output plan.tsv"

    data_dir: str = flag(help="a raw collection in any format that data.msmarco_data reads", is_path=True)
    model_name_or_path: str = flag(
        "",
        "directory (or hub name) of the model to start from; without it, a static one of the collection's own words",
        is_path=True,
        group="model",
    )
    output: str = flag(help="file to write: a setting, its value and why in each line", is_path=True, group="job")
    evaluate: bool = flag(False, "the model is evaluated as it is: no train split is needed", group="evaluation")
    arm_minutes: float = flag(
        15.0,
        "about how long an arm may take, where the train queries would do for longer",
        above=0,
        group="optimisation",
    )
    cores: int = flag(1, "cores that the programs will have", at_least=1, group="job")
    gpus: int = flag(0, "GPUs that the programs will have", at_least=0, group="job")
