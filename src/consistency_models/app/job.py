"""A further process of a run: `python job.py --job FOLDER` trains from the folder's config.yaml."""

import sys


def main() -> int:
    """Run the job of the folder on the command line."""
    from consistency_models.app.folder import RunFolder
    from consistency_models.app.run import run_job

    folder = sys.argv[sys.argv.index("--job") + 1]
    code, _ = run_job(RunFolder(folder).read_config(), folder)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
