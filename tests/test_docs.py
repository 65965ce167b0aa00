"""What the documentation says is so: its tables match the code, its files and commands exist.

Blocks that need a server run in tests/deployments/whole_application/test_readme.py.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from bireme.__main__ import COMMANDS
from cluster import __version__
from cluster.config import Autoscaling, LLMConfig
from cluster.observability import metrics as metrics_module
from deployments.start.app_arguments import AppArguments
from tests.deployments.whole_application import conformance

ROOT = Path(__file__).resolve().parent.parent
CONFIGURE = (ROOT / "docs/configure.md").read_text(encoding="utf-8")
# What people read to use it; lab notes stand apart, and their commands need other machines.
BY_TASK = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [
    *BY_TASK,
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "DECISIONS.md",
    *sorted((ROOT / "docs/lab").glob("*.md")),
]

PYTHON_BLOCK = re.compile(r"(<!-- runnable -->\n)?```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Which marks say that a block of a language is held by a test; "not run: REASON" goes with any, and "shown: TEST" with what a
# program prints, which that test compares.
RUN_AS = {
    "python": {"runnable", "calling"},
    "bash": {"served", "calling", "alone", "deployed"},
    "yaml": {"config", "prometheus"},
    "nginx": {"proxied"},
}
SHOWN = "shown: "


def config_table_script() -> ModuleType:
    return docs_script("make_config_table")


def docs_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(mark, language, text) of each fenced block."""
    return [(mark, language, text) for mark, language, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def blocks_marked(wanted: str) -> list[str]:
    """Blocks of all pages with a mark; library.md has a test of its own, because its blocks go together."""
    pages = [page for page in BY_TASK if page.name != "library.md"]
    return [text for page in pages for mark, _, text in blocks(page) if mark == wanted]


def shown_block(page: str, test: str, number: int = 0) -> str:
    """What a page shows that a program prints, of those blocks that say ``test`` compares them.

    Args:
        page: from the root. test: the test's ``__file__``. number: which of them, in the page's order.
    """
    mark = SHOWN + Path(test).resolve().relative_to(ROOT).as_posix()
    return [text for given, _, text in blocks(ROOT / page) if given == mark][number]


def is_held(mark: str, language: str) -> bool:
    """Whether a test runs the block or compares it, or the mark says why none does."""
    if mark.startswith(SHOWN):
        test = ROOT / mark.removeprefix(SHOWN)
        return test.is_file() and "shown_block(" in test.read_text(encoding="utf-8")
    return mark in RUN_AS.get(language, set()) or re.fullmatch(r"not run: .{8,}", mark) is not None


@pytest.mark.parametrize("page", BY_TASK, ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(blocks(page)) * 2 == len(re.findall(r"^ *```", text, re.MULTILINE)), "a block that is not recognised"
    unheld = [code for mark, language, code in blocks(page) if not is_held(mark, language)]
    assert not unheld, f"neither run nor marked <!-- not run: REASON -->: {unheld}"


@pytest.mark.parametrize("text", blocks_marked("config"), ids=lambda text: text.splitlines()[0])
def test_config_blocks_are_valid(text: str) -> None:
    config = yaml.safe_load(text)
    # A whole file of Serve, or settings alone.
    for args in [app["args"] for app in config["applications"]] if "applications" in config else [config]:
        AppArguments.with_keys(args)


@pytest.mark.parametrize("text", blocks_marked("prometheus"), ids=lambda text: text.splitlines()[0])
def test_files_for_prometheus_name_what_is_there(text: str) -> None:
    script, found = docs_script("make_metrics_table"), yaml.safe_load(text)
    known = {script.exported(metric) for metrics in script.GROUPS.values() for metric in metrics}
    for rule in (rule for group in found.get("groups", []) for rule in group["rules"]):
        assert rule.keys() <= {"alert", "expr", "for"}
        assert (named := set(re.findall(r"ray_bireme_\w+", rule["expr"])))
        assert named <= known
        assert rule["expr"].count("(") == rule["expr"].count(")")
    for job in found.get("scrape_configs", []):
        assert job["metrics_path"] == "/metrics"
        assert set(job["params"]["only"]) <= {"bireme", "vllm", "ray"}
    assert found.keys() <= {"groups", "scrape_configs"}


def test_config_table_is_current() -> None:
    assert config_table_script().with_table(CONFIGURE) == CONFIGURE, "run: python docs/make_config_table.py"


def test_config_table_has_every_setting() -> None:
    script = config_table_script()
    table = CONFIGURE.split(script.START, 1)[1].split(script.END, 1)[0]
    documented = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", table, re.MULTILINE)
    inner = [f"autoscaling.{name}" for name in Autoscaling.model_fields]
    assert [name for name, _ in documented if name not in inner] == list(LLMConfig.model_fields)
    assert {name for name, _ in documented} >= set(inner)
    assert all(meaning.strip() for _, meaning in documented), "a setting without a description"


def test_the_metrics_are_those_that_are_recorded() -> None:
    script, page = docs_script("make_metrics_table"), (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert script.with_table(page) == page, "run: python docs/make_metrics_table.py"
    known = {script.exported(metric) for metrics in script.GROUPS.values() for metric in metrics}
    assert len(known) == sum(
        isinstance(each, metrics_module.Metric)
        for group in vars(metrics_module).values()
        if isinstance(group, tuple)
        for each in group
    )
    for named in BY_TASK:
        text = named.read_text(encoding="utf-8")
        assert set(re.findall(r"\bray_bireme_\w*[a-z]\b", text)) <= known, named.name
        # Names without the prefix are those that the code gives them, which have no _total.
        own = {name.removeprefix("ray_").removesuffix("_total") for name in known}
        bare = set(re.findall(r"`(bireme_[a-z_]*[a-z])`", text))
        assert bare <= own, named.name
    operate = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    assert not re.findall(r"(?<!ray_)\bbireme_[a-z]+_", operate), "a name that /metrics does not have"


def test_every_command_has_a_place_on_the_page_of_the_terminal() -> None:
    page = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`bireme ([a-z-]+)", page))
    assert named >= {*COMMANDS, "version"}


def test_the_conformance_page_is_current() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert page == conformance.page(), "run: python docs/make_conformance_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not target.startswith(("http://", "https://", "#"))]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """The names under which GitHub links the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [(page.parent / path if path else page, anchor) for path, anchor in targets if "://" not in path]
    assert not [f"{path}#{anchor}" for path, anchor in local if path.suffix == ".md" and anchor not in anchors(path)]


def test_named_files_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:actors|cluster|deployments|docs|gpu_ops|tests)/[\w./]*)`", text))
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / name).exists()]


def test_tests_that_scripts_and_pages_name_exist():
    files = [*PAGES, *sorted((ROOT / "scripts").glob("*.sh"))]
    named = {name for file in files for name in re.findall(r"(?<![\w/])tests/[\w./{},]*[\w}]", file.read_text("utf-8"))}
    assert len(named) > 20
    each = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(sorted(named))}"], capture_output=True, text=True)
    assert not [name for name in each.stdout.split() if not (ROOT / name).exists()]


def test_the_index_of_decisions_has_each_of_them_once() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## (20\d\d.*)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", entry.lower()).replace(" ", "-") for entry in entries]
    assert sorted(re.findall(r"\]\(#(20[^)]*)\)", text)) == sorted(anchors)


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


def test_the_page_of_fields_matches_the_table_that_the_checks_read():
    page = (ROOT / "docs" / "fields.md").read_text(encoding="utf-8")
    script = docs_script("make_field_table")
    assert script.page() == page, "run: python docs/make_field_table.py"
    names = {row.name for rows in script.ROWS.values() for row in rows.values()}
    assert all(f"`{name}`" in page for name in names)


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (\d\S*) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert (citation["version"], str(citation["date-released"])) == headings[0]
    assert citation["version"] == __version__
    # Whoever is at a version's tag has that version.
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {tag for tag in tags.split() if re.fullmatch(r"v[\d.]+", tag)} <= {f"v{__version__}"}


def test_the_readme_is_a_front_door() -> None:
    test = str(ROOT / "tests/deployments/whole_application/test_serve_command.py")
    assert shown_block("README.md", test) in shown_block("docs/terminal.md", test), "two samples of one start"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170
