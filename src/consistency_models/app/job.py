"""A further process of a run: `python job.py --job FOLDER PARENT` trains from the folder's config.yaml.

PARENT is the process id of the first process. This process exits when the first process exits.
"""

import os
import sys
import threading
import time


def exit_with_parent(parent: int) -> None:
    """Watch the parent from a thread, once a second, and exit this process when the parent is gone.

    Without this watch, a parent that is killed during the start makes this process wait for the timeout of a
    collective. A parent that is killed later leaves data workers that keep its connections open for some seconds.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run the job of the folder on the command line."""
    folder, parent = sys.argv[sys.argv.index("--job") + 1 :]
    exit_with_parent(int(parent))
    from consistency_models.callbacks.stopping import StoppedBySignal, stoppable
    from consistency_models.errors import Exit
    from consistency_models.screen import optional_output

    try:
        with optional_output(), stoppable():
            from consistency_models.app.folder import RunFolder
            from consistency_models.app.lazy_torchmetrics import defer_metrics

            defer_metrics()
            from consistency_models.app.run import run_job

            code, _ = run_job(RunFolder(folder).read_config(), folder)
            return int(code)
    except (StoppedBySignal, KeyboardInterrupt):  # the first process reports the stop
        return int(Exit.STOPPED)


if __name__ == "__main__":
    sys.exit(main())
