"""Says when a training that was started elsewhere has done its first step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback


class FirstStep(Callback):
    """Writes the time at which the first step ended into the file of the environment variable FIRST_STEP."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """After the step."""
        file = Path(os.environ["FIRST_STEP"])
        if not file.exists():
            file.write_text(repr(time.time()))
