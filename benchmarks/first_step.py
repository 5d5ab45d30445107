"""A callback that reports the end of the first step to the process that started the training."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback


class FirstStep(Callback):
    """Writes time and CPU seconds at the end of the first step to the file of the environment variable FIRST_STEP."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Write the file after the first step."""
        file = Path(os.environ["FIRST_STEP"])
        if not file.exists():
            file.write_text(f"{time.time()!r} {time.process_time()!r}")
