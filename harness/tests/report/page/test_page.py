"""What is written, without a browser: the data, the policy of the page, and the files beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from harness.errors import SetupError
from harness.report import summary
from harness.report.nights import rows
from harness.report.nights.history import load
from harness.report.nights.store import Store
from harness.report.page.columns import OUTCOMES
from harness.report.page.page import write_page, write_run_page
from harness.report.summary import Outcome, Run
from harness.tests.report.page import histories
from harness.tests.report.test_summary import result


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(histories.write(tmp_path / "history")) as opened:
        yield opened


def data(page: Path) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def failure(page: Path) -> Any:
    found = data(page)
    return next(one for one in found["failures"] if found["results"]["outcome"][one["result"]] == 2)


def test_the_page_is_one_file_that_asks_for_nothing(store: Store, tmp_path: Path) -> None:
    page = write_page(store, tmp_path / "new" / "page")
    assert page == tmp_path / "new" / "page" / "index.html"
    text = page.read_text()
    assert "default-src 'none'" in text
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", outside)


def test_hostile_text_stays_text(store: Store, tmp_path: Path) -> None:
    text = write_page(store, tmp_path).read_text()
    assert text.count("</script>") == 2
    assert "<img" not in text
    # A placeholder in the data is not filled.
    assert histories.HOSTILE in data(tmp_path / "index.html")["texts"]


def test_results_are_columns_that_name_tests_and_cells(store: Store, tmp_path: Path) -> None:
    found = data(write_page(store, tmp_path))
    columns = found["results"]
    assert {len(column) for column in columns.values()} == {len(store.select(rows.Result))} == {24}
    failed = columns["outcome"].index(2)
    assert found["tests"][columns["test"][failed]]["name"] == histories.FAILING
    cell = found["cells"][columns["cell"][failed]]
    assert found["lanes"][cell["lane"]] == {"qemu": "7.2", "kernel": "6.1", "arch": "x86_64", "machine": "pc"}
    assert cell["qemu"] == "7.2 (7.2.2, build c0ffee)"
    assert [one["outcome"] for one in found["confirmations"][str(failed)]] == [2, 2, 0]
    (measure,) = found["measures"]
    assert (measure["name"], measure["unit"], len(measure["value"])) == ("start.restore", "s", 9)
    assert found["guarantees"] == [histories.LEAK, histories.CRASH]
    assert found["runs"][-1]["running"] == ["test_x.py::test_y"]


def test_the_columns_are_the_nights_of_the_report(store: Store, tmp_path: Path) -> None:
    """What is new in the report is in the last column: a run on the evening before, and no repeated one."""
    for begun, options in (
        ("2026-11-28T20:00:00", ("--thorough",)),
        ("2026-11-28T23:50:00", ("a.py",)),
        ("2026-11-29T00:10:00", ("b.py",)),
        ("2026-11-29T00:20:00", ("b.py",)),
    ):
        store.begin_run(
            rows.Run(
                uuid=begun,
                kind="scenarios",
                begun=f"{begun}+00:00",
                host="ci",
                cores=1,
                harness_version="0.1.0",
                options=options,
            )
        )
    late = "2026-11-29T00:30:00+00:00"
    store.begin_run(rows.Run(uuid="b", kind="bench", begun=late, host="ci", cores=1, harness_version="0.1.0"))
    found = data(write_page(store, tmp_path))["runs"]
    nights = [run["night"] for run in found]
    last = "2026-11-29 00:20:00"
    assert nights[2:] == ["2026-11-28", last, last, "2026-11-29", last, "2026-11-29"]
    history = load(store)
    recent = [run.begun for run in history.runs if history.is_recent(run)]
    assert recent == [run["begun"] for run in found if run["night"] == last]


def half_a_year_later(store: Store) -> None:
    begun = "2027-05-29T02:00:00+00:00"
    store.begin_run(
        rows.Run(uuid="late", kind="scenarios", begun=begun, host="ci", cores=1, harness_version="0.1.0")
    )


def test_runs_of_half_a_year_are_shown(store: Store, tmp_path: Path) -> None:
    half_a_year_later(store)
    found = data(write_page(store, tmp_path))
    assert [run["night"] for run in found["runs"]] == ["2026-11-28", "2027-05-29"]
    assert len(found["results"]["test"]) == 8
    assert len(found["findings"]) == 1


def test_the_pairs_of_all_explorations_are_summed(store: Store, tmp_path: Path) -> None:
    for number, pairs in enumerate(histories.EXPLORED):
        histories.explore(store, f"explore-{number}", *pairs)
    (found,) = data(write_page(store, tmp_path))["pairs"]
    assert (found["alphabet"], found["runs"]) == ("raw", 2)
    steps = found["steps"]
    assert steps == [histories.HOSTILE, "plug", "stop", "unplug"]
    named = {(steps[first] if first >= 0 else "", steps[then]): n for first, then, n in found["cells"]}
    assert named == {
        ("", "plug"): 3,
        ("plug", "stop"): 0,
        ("plug", "unplug"): 1200,
        (histories.HOSTILE, "plug"): 5,
    }


def test_a_merged_run_and_its_part_are_one(store: Store, tmp_path: Path) -> None:
    before = len(store.select(rows.Result))
    run = store.begin_run(
        rows.Run(
            uuid="merged",
            kind="merge",
            begun="2026-11-28T02:00:00+00:00",
            host="ci",
            cores=1,
            harness_version="0.1.0",
        )
    )
    for one in store.select(rows.Result, "run_id = 3"):
        store.add_result(
            rows.Result(**{name: getattr(one, name) for name in one.columns()} | {"run_id": run})
        )
    assert len(data(write_page(store, tmp_path))["results"]["test"]) == before


def test_the_files_of_a_failure_are_copied_and_linked(store: Store, tmp_path: Path) -> None:
    page = write_page(store, tmp_path / "page")
    found = failure(page)
    links = {name: page.parent / unquote(href) for name, href in found["files"]}
    assert {"history.ndjson", "qmp.ndjson", "a file & more.txt", "timeline.svg"} <= set(links)
    assert all(path.is_file() and page.parent in path.parents for path in links.values())
    assert ["last kernel lines", ["[  1.0] <b>oops</b>"]] in found["evidence"]
    assert found["id"] in data(page)["timelines"]
    assert found["again"][:2] == ["", ""]
    assert (page.parent / found["again"][2]).is_file()


def test_files_stay_when_the_tests_folder_is_gone(store: Store, tmp_path: Path) -> None:
    page = write_page(store, tmp_path / "page")
    before = failure(page)
    (tmp_path / "history" / "tests").rename(tmp_path / "elsewhere")
    again = failure(write_page(store, tmp_path / "page"))
    assert (again["files"], again["evidence"]) == (before["files"], before["evidence"])
    other = failure(write_page(store, tmp_path / "other"))
    assert (other["files"], other["why"]) == ([], "The test's folder does not exist any more: tests/stop")


def test_files_of_failures_that_are_not_shown_any_more_are_removed(store: Store, tmp_path: Path) -> None:
    page = write_page(store, tmp_path)
    assert (tmp_path / "failures" / failure(page)["id"]).is_dir()
    half_a_year_later(store)
    later = rows.Run(
        uuid="later",
        kind="scenarios",
        begun="2027-08-30T02:00:00+00:00",
        host="ci",
        cores=1,
        harness_version="0.1.0",
    )
    store.begin_run(later)
    write_page(store, tmp_path)
    assert list((tmp_path / "failures").iterdir()) == []
    assert not any(failed["files"] for failed in data(page)["failures"])


def test_a_large_file_is_linked_where_it_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.report.page.files._LARGEST", 100)
    page = write_page(store, tmp_path / "page")
    links = dict(failure(page)["files"])
    target = (page.parent / unquote(links["history.ndjson (not copied)"])).resolve()
    assert target == (tmp_path / "history" / "tests" / "stop" / "history.ndjson").resolve()


def test_timelines_have_a_limit(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.report.page.failures._TIMELINES", 100)
    page = write_page(store, tmp_path)
    assert data(page)["timelines"] == {}
    assert "timeline.svg" in dict(failure(page)["files"])


def test_a_damaged_record_has_its_files_all_the_same(store: Store, tmp_path: Path) -> None:
    (tmp_path / "history" / "tests" / "stop" / "history.ndjson").write_text("not an entry\n")
    page = write_page(store, tmp_path)
    assert "qmp.ndjson" in dict(failure(page)["files"])
    assert data(page)["timelines"] == {}


def test_a_failure_says_since_when_and_how_to_go_on(store: Store, tmp_path: Path) -> None:
    found = failure(write_page(store, tmp_path))
    assert found["since"]["first_bad"][:10] == "2026-11-28"
    assert found["since"]["last_good"][:10] == "2026-11-27"
    assert found["since"]["changed"] == ["QEMU version 7.2.1 → 7.2.2"]
    assert [command.partition(" --")[0].split()[:2] for command in found["commands"]][1] == [
        "harness",
        "bisect",
    ]


def test_a_failure_keeps_its_name(store: Store, tmp_path: Path) -> None:
    first, second = (failure(write_page(store, tmp_path / name))["id"] for name in ("a", "b"))
    assert first == second


def test_an_empty_history_gives_a_page(tmp_path: Path) -> None:
    with Store(tmp_path / "empty.sqlite") as store:
        assert data(write_page(store, tmp_path / "page"))["results"]["test"] == []


def test_a_run_has_the_same_page(tmp_path: Path) -> None:
    skipped = result("c", guarantee="refusal", outcome=Outcome.SKIPPED, why="no libjemalloc2")
    run = Run(results=(result(), result("b", outcome=Outcome.FAILED, why=histories.HOSTILE), skipped))
    page = write_run_page(run, tmp_path)
    assert page == tmp_path / summary.PAGE
    found = data(page)
    assert found["one"]
    assert [OUTCOMES[outcome] for outcome in found["results"]["outcome"]] == [
        "passed",
        "new failure",
        "skipped",
    ]
    assert found["gaps"][0]["why"] == "1 skipped: no libjemalloc2"
    assert found["report"] is None


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot write"):
        write_page(store, tmp_path / "file")
