"""Alerts fire on what they are for, and each has a page that says what to do."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ops.alert_cases import CASES, Case
from ops.rule_files import PAGES, ROOT, RULES, alerts, rule_groups

NAMES = sorted(rule["alert"] for rule in alerts())


def test_each_alert_has_a_page_and_names_it() -> None:
    """Who is woken finds what it means, what to look at and what to do."""
    for rule in alerts():
        page = ROOT / rule["annotations"]["runbook_url"]
        assert page == PAGES / f"{rule['alert']}.md"
        text = page.read_text()
        assert text.startswith(f"# {rule['alert']}\n")
        for heading in ("## What it means", "## What to look at", "## What to do"):
            assert heading in text, f"{page.name} lacks {heading}"
    listed = {page.stem for page in PAGES.glob("Groupreplay*.md")}
    assert listed == set(NAMES)
    index = (PAGES / "README.md").read_text()
    assert all(f"({name}.md)" in index for name in NAMES)


def test_each_alert_is_tested_to_fire_and_to_be_silent() -> None:
    """Nobody adds an alert that was never seen to fire."""
    for name in NAMES:
        assert {bool(case.fires) for case in CASES if case.alert == name} == {True, False}, name
    assert {case.alert for case in CASES} == set(NAMES)


def test_what_an_alert_says_names_labels_that_it_has() -> None:
    """A label that the expression has taken away would be an empty word in the message."""
    for rule in alerts():
        said = " ".join(rule["annotations"].values())
        [fired] = [case.fires[0] for case in CASES if case.alert == rule["alert"] and case.fires]
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= set(fired), rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def promtool_test(case: Case) -> dict[str, Any]:
    """Return a case as promtool reads it."""
    fired = [{"exp_labels": {**labels, "severity": case.severity}} for labels in case.fires]
    return {
        "name": f"{case.alert}: {case.what}",
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [{"eval_time": f"{case.minutes}m", "alertname": case.alert, "exp_alerts": fired}],
    }


@pytest.mark.ops
def test_promtool_agrees(tmp_path: Path) -> None:
    """The rules are well formed, and every case ends as it must; annotations, which it compares too, are left out."""
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not installed: apt-get install prometheus"
    checked = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    groups = rule_groups()
    for group in groups:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [promtool_test(case) for case in CASES],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    tested = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
