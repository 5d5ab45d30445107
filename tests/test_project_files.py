"""Files around the code: they are well-formed, and each number in them has one value."""

import re
import tomllib

import pytest
import yaml
from jobs import ROOT

import consistency_models

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_forms_and_workflows_are_yaml(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    required = {"name", "description", "body"} if "ISSUE_TEMPLATE" in file.parts else {"name", "jobs"}
    assert required <= content.keys()


def test_the_version_has_one_value():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == consistency_models.__version__
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] == consistency_models.__version__
    assert PROJECT["dynamic"] == ["version"]


def test_the_workflow_tests_the_versions_of_python_that_are_declared():
    declared = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python-version"] == declared


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = next(step["run"] for step in WORKFLOW["jobs"]["oldest"]["steps"] if "==" in step.get("run", ""))
    pinned = dict(re.findall(r"([\w-]+)==([\d.]+)", oldest))
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE))
    assert all(version.startswith(bounds[name]) for name, version in pinned.items())
    assert oldest.split() == re.search(r"pip install torch==.*", _reliability())[0].split()


def _reliability():
    return (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_no_file_names_the_package_of_the_index():
    """The name belongs to another project there."""
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md")]:
        assert "consistency-models[" not in file.read_text(encoding="utf-8"), file


def test_slow_tests_run_once_a_week():
    assert WORKFLOW[True]["schedule"]  # YAML reads the key `on` as true
    commands = [step["run"] for step in WORKFLOW["jobs"]["slow"]["steps"] if "run" in step]
    assert commands[-1] == "python -m pytest -m slow"
    assert WORKFLOW["jobs"]["slow"]["if"] == "github.event_name == 'schedule'"


@pytest.mark.parametrize("name", ["ruff check", "ruff format", "mypy"])
def test_a_commit_is_checked_as_the_workflow_checks_it(name):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook for hook in hooks if hook["entry"].startswith(name)]
    assert [step for step in WORKFLOW["jobs"]["lint"]["steps"] if step.get("run", "").startswith(name)]
