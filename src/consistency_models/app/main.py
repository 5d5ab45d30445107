"""The commands train and eval: compose the configuration, check it, then run its jobs.

The configuration of every job is checked before heavy imports, so a wrong configuration is refused within a second and
touches neither a folder nor a device. The signal handlers are installed before Hydra is imported: a job that a
scheduler stops during its start ends with the exit code that requests a requeue.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistency_models.app.commands import project_root
from consistency_models.callbacks.stopping import StoppedBySignal, stoppable
from consistency_models.errors import ConfigError, Exit, pasteable
from consistency_models.screen import optional_output

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["evaluate", "main", "train"]

HYDRA_ANSWERS = ("hydra_help", "cfg", "info", "version", "shell_completion", "resolve")


def main(task: str, root: Path) -> int:
    """Run the command line of `task`, "train" or "eval"; `root` is the folder with conf/ and sweeps/.

    Returns:
        The exit code (`Exit`); for a multirun, the highest exit code of its jobs.
    """
    try:
        with stoppable():
            return _run_command(task, root)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    except OSError as error:  # of a check: a name that is too long, a disk that does not answer
        print(f"error: {error}", file=sys.stderr)
        return int(Exit.STORAGE)
    except (StoppedBySignal, KeyboardInterrupt) as stop:
        text = str(stop) or "stopped by SIGINT outside training"
        with suppress(OSError):  # the terminal may be closed
            print(text, file=sys.stderr)
        multirun = sys.modules.get("consistency_models.app.multirun")  # may not be imported yet
        folder = multirun.Multirun.run_folder if multirun else None
        if folder is not None and folder.state in (None, "RUNNING"):
            with suppress(OSError), folder.claimed(patience=0) as free:  # a full disk; another process may train in it
                if free:
                    folder.mark("STOPPED", f"{text}\n")
        return int(Exit.STOPPED)


def _run_command(task: str, root: Path) -> int:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        folder, fix = os.environ.get("PWD", "."), "change to another folder"
        raise ConfigError("working folder", folder, "a folder that exists", fix, reason="it was deleted") from error
    import hydra
    from hydra._internal.utils import get_args_parser

    from consistency_models.app.multirun import Multirun

    os.environ.setdefault("PROJECT_ROOT", str(root))
    # Threads spin while they wait for one another. Unlimited spinning makes a training on shared cores ten times
    # slower; no spinning makes a training on its own cores 1.7 times slower. OpenMP reads the limit at import.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    parser = get_args_parser()
    parser.allow_abbrev = False  # --experiment=… is a key with dashes, not --experimental-rerun
    words = sys.argv[1:]
    flags = [word for word in words if word.startswith("--run=")]  # --run is a flag of Hydra, without a value
    arguments, unknown = parser.parse_known_args([word for word in words if word not in flags])
    arguments.overrides += [word for word in unknown if not word.startswith("-")]  # after a flag
    flags += [word for word in unknown if word.startswith("-")]
    if flags:
        key, _, value = flags[0].partition("=")
        fix = f"did you mean {key.lstrip('-')}={value or '…'}?"
        raise ConfigError(key, value, "KEY=VALUE without dashes, and the flags of --hydra-help", fix)
    outcomes: list[int] = []
    if arguments.help:
        from consistency_models.app.help import help_of

        print(help_of(task, root / "conf", arguments.config_dir))
        return int(Exit.DONE)
    is_answer = any(getattr(arguments, name, None) for name in HYDRA_ANSWERS)
    if not is_answer:
        from consistency_models.app.checks import check_command, config_to_plan

        sys.argv[1:] = check_command(task, root / "conf", arguments)
        if task == "train" and (config := config_to_plan(root / "conf", arguments)) is not None:
            from consistency_models.app.plan import plan

            print(plan(config))
            return int(Exit.DONE)
    with nullcontext() if is_answer else optional_output():  # an answer into a full disk is an error
        hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name=task)(_job(task, outcomes))()
    return max([*outcomes, Multirun.folder.exit_code if Multirun.folder else 0])


def train() -> int:
    """Run the command `consistency-train`: train.py, from any folder."""
    return main("train", project_root())


def evaluate() -> int:
    """Run the command `consistency-eval`: eval.py, from any folder."""
    return main("eval", project_root())


def _job(task: str, outcomes: list[int]) -> Any:
    def job(composed: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from consistency_models.app.multirun import run_or_resume_job

        config = OmegaConf.to_container(composed, resolve=True)
        if task == "eval":
            from consistency_models.app.tasks import run_task

            outcomes.append(int(run_task(config)))
            return None
        config.pop("sweep", None)  # the grids; this job is one cell
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        code, metric = run_or_resume_job(_train_and_test, config) if multirun else _train_and_test(config)
        outcomes.append(int(code))
        return metric

    return job


def _train_and_test(config: dict[str, Any]) -> tuple[Exit, float | None]:
    """Train and test as configured, in the folder of Hydra."""
    from consistency_models.app.lazy_torchmetrics import defer_metrics

    defer_metrics()
    from hydra.core.hydra_config import HydraConfig
    from lightning.pytorch.utilities import rank_zero_only

    from consistency_models.app.artifacts import resolve_artifacts
    from consistency_models.app.build import with_absolute_root
    from consistency_models.app.checks.files import has_checkpoint
    from consistency_models.app.folder import RunFolder
    from consistency_models.app.outcome import report
    from consistency_models.app.run import run_job

    folder, code, metric = HydraConfig.get().runtime.output_dir, Exit.DONE, None
    first = rank_zero_only.rank == 0  # among the processes of torchrun or srun
    with RunFolder(folder).claimed() if config["train"] and first else nullcontext(True) as free:
        if not free:
            fix, reason = "wait for it, or stop it", "another process trains in it"
            busy = ConfigError("run folder", folder, "a folder of no other process", fix, reason=reason)
            return report(busy, config["show_traceback"])[0], None
        resumes = config["ckpt_path"] is not None and Path(config["ckpt_path"]).resolve() == Path(folder).resolve()
        if config["train"] and first and has_checkpoint(Path(folder)) and not resumes:  # written during the wait
            fix = f"resume it by {pasteable('ckpt_path', folder)}, or choose another folder"
            reason = "its checkpoints would be overwritten"
            taken = ConfigError("run folder", folder, "a folder without checkpoints", fix, reason=reason)
            return report(taken, config["show_traceback"])[0], None
        before = RunFolder(folder).snapshot() if config["train"] and first and resumes else None
        try:
            config = with_absolute_root(resolve_artifacts(config))
            if config["train"]:
                RunFolder(folder).write_config(config, list(HydraConfig.get().overrides.task))
        except (ConfigError, OSError) as error:
            code, text = report(error, config["show_traceback"])
            if config["train"]:
                with suppress(OSError):
                    RunFolder(folder).mark("FAILED", text)
        if config["train"] and code == Exit.DONE:
            logging.getLogger("consistency_models").info("run folder %s", folder)
            code, metric = run_job(config, folder)
        if before is not None and code in (Exit.BAD_INPUT, Exit.NO_GOOD_CHECKPOINT):
            with suppress(OSError):  # the refused settings would be those of the next resume
                RunFolder(folder).restore(before)
    if config["test"] and code == Exit.DONE and first:  # the other processes are done
        from consistency_models.app.tasks import run_task
        from consistency_models.app.tasks.evaluate import eval_config

        code = run_task(eval_config(config, folder if config["train"] else config["ckpt_path"]))
    return code, metric
