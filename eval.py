"""Sample from a trained model and score the samples:  python eval.py run=runs/ict_digits/DATE_TIME 'steps=[1,2,4]'."""

import sys

try:
    from pathlib import Path

    from consistency_models.app.main import main
except KeyboardInterrupt:  # Ctrl-C during the imports
    sys.exit(75)

if __name__ == "__main__":
    sys.exit(main("eval", Path(__file__).resolve().parent))
