"""A further process of a run: `python job.py --job FOLDER PARENT` trains from the folder's config.yaml.

PARENT is the number of the process that starts it: when that one ends, so does this.
"""

import os
import sys
import threading
import time


def end_with(parent: int) -> None:
    """Watch from a thread, once a second, and end this process when its parent is gone.

    Killed while this process starts, the parent would be waited for as long as a collective may take; killed later, its
    data workers hold its connections open for some seconds more.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run the job of the folder on the command line."""
    folder, parent = sys.argv[sys.argv.index("--job") + 1 :]
    end_with(int(parent))
    from consistency_models.callbacks.stopping import StoppedBySignal, stoppable
    from consistency_models.errors import Exit

    try:
        with stoppable():
            from consistency_models.app.folder import RunFolder
            from consistency_models.app.run import run_job

            code, _ = run_job(RunFolder(folder).read_config(), folder)
            return int(code)
    except (StoppedBySignal, KeyboardInterrupt):  # the first process says so
        return int(Exit.STOPPED)


if __name__ == "__main__":
    sys.exit(main())
