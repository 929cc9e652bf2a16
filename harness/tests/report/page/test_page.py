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
from harness.report.nights import rows
from harness.report.nights.store import Store
from harness.report.page import About, write_page
from harness.tests.report.page import histories


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


def test_since_leaves_earlier_runs_out(store: Store, tmp_path: Path) -> None:
    found = data(write_page(store, tmp_path, since="2026-11-28"))
    assert [run["night"] for run in found["runs"]] == ["2026-11-28"]
    assert len(found["results"]["test"]) == 8
    assert len(found["findings"]) == 1


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
    write_page(store, tmp_path, since="2027-01-01")
    assert list((tmp_path / "failures").iterdir()) == []


def test_a_large_file_is_linked_where_it_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.report.page.failures._FILE", 100)
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


def test_what_an_analysis_knows_is_shown(store: Store, tmp_path: Path) -> None:
    (result,) = store.select(rows.Result, "outcome = 'new failure'")
    about = {result.id: About((("Last good", "2026-11-27"),), ("harness bisect x",))}
    found = failure(write_page(store, tmp_path, about=about))
    assert found["facts"] == [["Last good", "2026-11-27"]]
    assert found["commands"] == ["harness bisect x"]


def test_a_failure_keeps_its_name(store: Store, tmp_path: Path) -> None:
    first, second = (failure(write_page(store, tmp_path / name))["id"] for name in ("a", "b"))
    assert first == second


def test_an_empty_history_gives_a_page(tmp_path: Path) -> None:
    with Store(tmp_path / "empty.sqlite") as store:
        assert data(write_page(store, tmp_path / "page"))["results"]["test"] == []


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot write"):
        write_page(store, tmp_path / "file")
