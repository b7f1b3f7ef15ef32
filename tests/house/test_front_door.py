"""Tests of the files that a visitor of the repository meets first: citation, changelog, forms and the workflow.

tests/runs/test_readme.py tests the README and the links of the changelog."""

import contextlib
import io
import os
import platform
import re
from pathlib import Path

import pytest
import yaml

import zoo

ROOT = Path(__file__).parents[2]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def read(*path):
    return ROOT.joinpath(*path).read_text(encoding="utf-8")


# Each function returns a list of what is wrong, so that a test can also show that it finds faults.


def faults_of_citation(text, version, licence):
    """Return what is wrong in a citation file of the version 1.2.0 of its format."""
    found = yaml.safe_load(text)
    needed = {"cff-version": "1.2.0", "type": "software", "version": version, "license": licence}
    wrong = [f"{key} is {found.get(key)!r}, not {value!r}" for key, value in needed.items() if found.get(key) != value]
    wrong += [f"{key} is missing" for key in ("message", "title", "abstract") if not isinstance(found.get(key), str)]
    authors = found.get("authors") or [{}]
    wrong += ["an author has no name" for author in authors if not {"name", "family-names"} & set(author)]
    known = {*needed, "message", "title", "abstract", "authors", "keywords", "references", "date-released", "doi"}
    return wrong + [f"unknown key {key}" for key in found if key not in known]


def faults_of_changelog(text, version):
    """Return what is wrong in a changelog in the form of Keep a Changelog."""
    versions = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    wrong = [] if version in versions else [f"no section of the version {version}"]
    wrong += [f"the version {one} is there twice" for one in {one for one in versions if versions.count(one) > 1}]
    for section in re.findall(r"^### (.*)$", text, re.MULTILINE):
        if section.partition(":")[0] not in SECTIONS:
            wrong.append(f"unknown section {section}")
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        if not re.search(r"^- \S", part, re.MULTILINE):
            wrong.append(f"nothing under {part.partition(chr(10))[0]}")
    return wrong


def faults_of_form(text):
    """Return what is wrong in an issue form, by the syntax of GitHub."""
    form = yaml.safe_load(text)
    wrong = [f"{key} is missing" for key in ("name", "description", "body") if not form.get(key)]
    fields = form.get("body") or []
    names = [field.get("id") for field in fields if field.get("type") != "markdown"]
    wrong += [f"the name {name} is there twice" for name in {name for name in names if names.count(name) > 1}]
    wrong += [] if names else ["no field asks for anything"]
    for field in fields:
        kind, attributes = field.get("type"), field.get("attributes") or {}
        if kind not in ("markdown", "textarea", "input", "dropdown", "checkboxes"):
            wrong.append(f"unknown type {kind}")
        if not attributes.get("value" if kind == "markdown" else "label"):
            wrong.append(f"a field of type {kind} has no label")
        if kind in ("dropdown", "checkboxes") and not attributes.get("options"):
            wrong.append(f"{field.get('id')} has no options")
        if kind != "markdown" and not re.fullmatch(r"[\w-]+", field.get("id") or ""):
            wrong.append(f"{field.get('id')!r} is no name of a field")
    if not any((field.get("validations") or {}).get("required") for field in fields):
        wrong.append("no field is required")
    return wrong


def faults_of_workflow(text, pythons):
    """Return what is wrong in the workflow."""
    found = yaml.safe_load(text)
    events = set(found.get("on", found.get(True)) or ())  # YAML 1.1 reads the key on as true
    wrong = [f"it does not run on {event}" for event in ("push", "pull_request") if event not in events]
    jobs = found.get("jobs") or {}
    steps = [step for job in jobs.values() for step in job.get("steps", ())]
    wrong += [] if any(step.get("run") == ".ci/run" for step in steps) else ["no step runs .ci/run"]
    used = [step.get("uses", "").partition("@")[0] for step in steps]
    wrong += [f"{name} is missing" for name in ("actions/checkout", "actions/setup-python") if name not in used]
    wrong += [f"no version of {step['uses']}" for step in steps if "uses" in step and "@" not in step["uses"]]
    wrong += [f"{name} runs on no ubuntu" for name, job in jobs.items() if "ubuntu" not in job.get("runs-on", "")]
    tried = {one for job in jobs.values() for one in job.get("strategy", {}).get("matrix", {}).get("python", ())}
    return wrong + [f"Python {one} is not tried" for one in pythons if one not in tried]


def pythons():
    """Return the versions of Python that pyproject.toml names."""
    return re.findall(r"Python :: (3\.\d+)", read("pyproject.toml"))


def test_the_citation_has_the_version_and_the_licence_of_the_package():
    (licence,) = re.findall(r'^license = "(.*)"$', read("pyproject.toml"), re.MULTILINE)
    assert faults_of_citation(read("CITATION.cff"), zoo.__version__, licence) == []
    (author,) = yaml.safe_load(read("CITATION.cff"))["authors"]
    assert author["name"] in read("LICENSE")


def test_the_changelog_has_the_version_of_the_package():
    assert faults_of_changelog(read("CHANGELOG.md"), zoo.__version__) == []
    assert len(read("CHANGELOG.md").splitlines()) <= 120


@pytest.mark.parametrize("form", [path for path in sorted(FORMS.glob("*.yml")) if path.name != "config.yml"], ids=str)
def test_the_issue_forms_have_the_keys_that_a_host_requires(form):
    assert faults_of_form(form.read_text(encoding="utf-8")) == []


def test_there_are_forms_for_bugs_and_questions():
    assert {path.name for path in FORMS.iterdir()} == {"bug.yml", "question.yml", "config.yml"}
    assert isinstance(yaml.safe_load(read(".github", "ISSUE_TEMPLATE", "config.yml"))["blank_issues_enabled"], bool)
    assert "CHANGELOG.md" in read(".github", "pull_request_template.md")


def test_the_workflow_runs_the_tests_that_contributors_run():
    assert len(pythons()) >= 2
    assert faults_of_workflow(read(".github", "workflows", "ci.yml"), pythons()) == []
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_command_that_asks_for_versions_runs():
    """The bug form asks for the output of a command of Python."""
    (field,) = (
        f for f in yaml.safe_load(read(".github", "ISSUE_TEMPLATE", "bug.yml"))["body"] if f["id"] == "versions"
    )
    (program,) = re.findall(r'^python -c "(.*)"$', field["attributes"]["value"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(program, {})
    assert platform.python_version() in said.getvalue() and len(said.getvalue().split()) == 5


CHANGES = [
    (faults_of_citation, "CITATION.cff", "version: 0", "version: 9", ("0.1.0", "MIT"), "version is '9.1.0'"),
    (faults_of_citation, "CITATION.cff", "title:", "titel:", ("0.1.0", "MIT"), "title is missing"),
    (faults_of_citation, "CITATION.cff", "- name:", "- alias:", ("0.1.0", "MIT"), "an author has no name"),
    (faults_of_changelog, "CHANGELOG.md", "## [0.1.0]", "## 0.1.0", ("0.1.0",), "no section of the version 0.1.0"),
    (faults_of_changelog, "CHANGELOG.md", "### Fixed", "### Mended", ("0.1.0",), "unknown section Mended"),
    (faults_of_changelog, "CHANGELOG.md", "### Fixed", "### Removed\n\n### Fixed", ("0.1.0",), "nothing under Removed"),
    (
        faults_of_form,
        ".github/ISSUE_TEMPLATE/bug.yml",
        "description: Something",
        "about: Something",
        (),
        "description is",
    ),
    (faults_of_form, ".github/ISSUE_TEMPLATE/bug.yml", "id: output", "id: happened", (), "the name happened"),
    (faults_of_form, ".github/ISSUE_TEMPLATE/bug.yml", "type: input", "type: text", (), "unknown type text"),
    (faults_of_form, ".github/ISSUE_TEMPLATE/bug.yml", "required: true", "required: false", (), "no field is required"),
    (faults_of_form, ".github/ISSUE_TEMPLATE/question.yml", "options:", "choices:", (), "topic has no options"),
    (faults_of_workflow, ".github/workflows/ci.yml", "run: .ci/run", "run: pytest", ((),), "no step runs .ci/run"),
    (
        faults_of_workflow,
        ".github/workflows/ci.yml",
        "pull_request:",
        "release:",
        ((),),
        "it does not run on pull_request",
    ),
    (faults_of_workflow, ".github/workflows/ci.yml", "setup-python@v5", "setup-python", ((),), "no version of actions"),
    (faults_of_workflow, ".github/workflows/ci.yml", "name: ci", "name: ci", (("3.99",),), "Python 3.99 is not tried"),
]


@pytest.mark.parametrize(("check", "file", "before", "after", "arguments", "fault"), CHANGES)
def test_a_fault_in_a_file_is_found(check, file, before, after, arguments, fault):
    text = read(file)
    assert before in text
    assert any(found.startswith(fault) for found in check(text.replace(before, after), *arguments))
