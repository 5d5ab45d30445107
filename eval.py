"""Sample from a trained model and score it:  python eval.py run=runs/ict_digits/DATE_TIME steps=[1,2,4]."""

import sys

try:
    from pathlib import Path

    from consistency_models.app.main import main
except KeyboardInterrupt:  # Ctrl-C before the command has begun
    sys.exit(75)

if __name__ == "__main__":
    sys.exit(main("eval", Path(__file__).resolve().parent))
