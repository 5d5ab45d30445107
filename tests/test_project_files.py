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


@pytest.mark.parametrize("name", ["ruff check", "ruff format", "mypy"])
def test_a_commit_is_checked_as_the_workflow_checks_it(name):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook for hook in hooks if hook["entry"].startswith(name)]
    assert [step for step in WORKFLOW["jobs"]["lint"]["steps"] if step.get("run", "").startswith(name)]
