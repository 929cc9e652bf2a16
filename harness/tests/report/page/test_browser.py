"""The page in headless Chromium: what is shown, filters, keys, links, and that nothing leaves it.

These tests need Playwright (``pip install '.[page]'``) and a Chromium, such as Debian's package ``chromium``.
Without them they are skipped.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from harness.report.nights import rows
from harness.report.nights.history import load
from harness.report.nights.report import report
from harness.report.nights.store import Store
from harness.report.page.page import write_page
from harness.tests.report.nights import generator
from harness.tests.report.page import histories
from harness.tests.report.timeline.records import Writer

_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
VIEWS = ("#/", "#/tests", "#/results", "#/findings", "#/runs", "failure", "test")
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1300, "height": 900}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install '.[page]'")
    found = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"needs a Chromium on PATH: {', '.join(_CHROMIUMS)}")
    # Chromium's sandbox refuses to run as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with Store(histories.write(folder / "history")) as store:
        return write_page(store, folder / "page")


class Opened:
    """The page in a tab, and what the tab complained about and asked for."""

    def __init__(self, browser: Any, index: Path, **options: Any) -> None:
        self.index = index
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(**({"viewport": DESK} | options))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.go("#/")

    def go(self, view: str) -> None:
        if view in ("failure", "test"):
            view = self.href("new failure" if view == "failure" else "passed", view)
        self.tab.goto(f"{self.index.as_uri()}{view}")
        self.tab.wait_for_selector("main h2")

    def href(self, outcome: str, view: str) -> str:
        """The link to a failure, or to a test, from the list of results."""
        self.go(f"#/results?outcome={outcome.replace(' ', '%20')}")
        found: str = self.tab.locator(f"main a[href^='#/{view}/']").first.get_attribute("href")
        return found

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.tab.locator(selector).all_inner_texts()
        return found

    def evaluate(self, script: str) -> Any:
        return self.tab.evaluate(script)


@pytest.fixture
def opened(chromium: Any, index: Path) -> Iterator[Opened]:
    made = Opened(chromium, index)
    yield made
    made.tab.close()
    assert made.complaints == []
    assert {url.partition("#")[0] for url in made.requests} == {index.as_uri()}


def test_the_overview_has_a_named_cell_for_each_guarantee_lane_and_night(opened: Opened) -> None:
    names = opened.evaluate(
        "[...document.querySelectorAll('.heat tbody a')].map(a => a.getAttribute('aria-label'))"
    )
    assert len(names) == 3 * 3 + 2 * 3
    assert f"{histories.LEAK}, 7.2, pc, 2026-11-28: 1 passed, 1 known bug" in names
    assert f"{histories.CRASH}, 7.2, pc, 2026-11-28: 1 new failure" in names
    assert f"{histories.CRASH}, 7.2, q35, 2026-11-26: 1 skipped" in names
    assert opened.texts(".tiles b") == ["1", "0", "3", "3", "1"]
    assert "Incomplete run" in opened.texts("main")[0]
    assert "no cpr-reboot" in opened.texts("main")[0]


def test_filters_narrow_what_is_shown_and_are_part_of_the_address(opened: Opened) -> None:
    cells = opened.tab.locator(".heat tbody a")
    opened.tab.get_by_label("QEMU", exact=True).select_option("11.1")
    assert cells.count() == 3
    assert "qemu=11.1" in opened.evaluate("location.hash")
    opened.tab.get_by_label("Guarantee").select_option(histories.CRASH)
    assert cells.count() == 0
    assert opened.texts(".empty") == ["Nothing matches the filters."]
    opened.tab.get_by_role("button", name="Clear").click()
    assert cells.count() == 15
    assert opened.evaluate("location.hash") == "#/"
    opened.tab.get_by_label("Test or cause contains").fill("WINDOW.HURT")
    assert cells.count() == 1
    opened.go("#/results?machine=q35&outcome=skipped&night=2026-11-27")
    assert opened.texts("main h2") == ["1 result"]
    assert opened.tab.get_by_label("Machine type").input_value() == "q35"


def test_the_heat_map_is_one_tab_stop_in_which_arrows_move(opened: Opened) -> None:
    assert opened.tab.locator(".heat tbody a[tabindex='0']").count() == 1
    opened.tab.locator(".heat tbody a[tabindex='0']").focus()
    focused = "document.activeElement.getAttribute('aria-label')"
    assert "7.2, pc, 2026-11-26" in opened.evaluate(focused)
    opened.tab.keyboard.press("ArrowRight")
    opened.tab.keyboard.press("ArrowDown")
    assert "7.2, q35, 2026-11-27" in opened.evaluate(focused)
    opened.tab.keyboard.press("ArrowLeft")
    opened.tab.keyboard.press("ArrowLeft")
    assert "7.2, q35, 2026-11-26" in opened.evaluate(focused)
    opened.tab.keyboard.press("Enter")
    opened.tab.wait_for_function("location.hash.startsWith('#/results')")
    assert opened.texts("main h2") == ["2 results"]


def test_a_failure_has_its_cause_evidence_commands_and_files(opened: Opened) -> None:
    opened.go("failure")
    assert opened.texts("pre.cause") == [histories.HOSTILE]
    assert opened.evaluate("[window.hurt, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert "[  1.0] <b>oops</b>" in opened.texts("main")[0]
    assert "3 of 4, flaky: new failure, new failure, passed (timeline)" in opened.texts("dd")
    assert "qemu_alive | x" in opened.texts("dd")
    links = opened.evaluate("[...document.querySelectorAll('main li a')].map(a => a.getAttribute('href'))")
    assert len(links) > 5
    for link in links:
        assert (opened.index.parent / unquote(link)).is_file(), link


def test_a_link_to_a_file_opens_it(chromium: Any, index: Path) -> None:
    made = Opened(chromium, index)
    made.go("failure")
    made.tab.get_by_role("link", name="a file & more.txt").click()
    assert made.texts("body") == ["x\n"] or "x" in made.texts("body")[0]
    made.tab.close()


def test_the_timeline_is_drawn_and_zooms_by_button_and_key(opened: Opened) -> None:
    opened.go("failure")
    box = opened.tab.get_by_role("region", name="Timeline")
    titles = box.locator(".lane .title").all_text_contents()
    assert [title.partition(" (")[0] for title in titles][:5] == [
        "host",
        "holds",
        "source: QMP",
        "source: events",
        "source: guest",
    ]
    assert box.locator(".arrow").count() == 2
    width = "document.querySelector('svg.timeline').getBoundingClientRect().width"
    opened.tab.wait_for_timeout(50)
    before = opened.evaluate(width)
    opened.tab.get_by_role("button", name="Zoom in").click()
    assert opened.evaluate(width) == pytest.approx(2 * before, rel=0.01)
    box.focus()
    opened.tab.keyboard.press("+")
    assert opened.evaluate(width) == pytest.approx(4 * before, rel=0.01)
    opened.tab.keyboard.press("0")
    assert opened.evaluate(width) == pytest.approx(before, rel=0.01)


def test_a_test_has_its_history_and_a_plot_for_each_measurement(opened: Opened) -> None:
    opened.go("test")
    assert opened.texts("main h2") == ["scenarios/test_leak.py::test_cycle"]
    assert opened.texts("figcaption") == ["duration (s)", "start.restore (s)"]
    assert opened.tab.locator("figure").first.locator("circle").count() == 9
    label = opened.tab.locator("svg.plot").nth(1).get_attribute("aria-label")
    assert label == "start.restore in s: median 0.100, from 0.100 to 0.100"
    opened.tab.locator("summary").first.click()
    assert opened.tab.locator("figure").first.locator("tbody tr").count() == 9
    opened.tab.get_by_role("link", name="7.2, q35", exact=True).first.click()
    opened.tab.wait_for_function("location.hash.includes('lane=')")
    assert opened.tab.locator("figure").first.locator("circle").count() == 3


def test_a_failed_test_leads_to_its_failure(opened: Opened) -> None:
    opened.go("#/tests?text=test_stop")
    opened.tab.locator("main td a").first.click()
    opened.tab.wait_for_selector(".heat a.bad")
    opened.tab.locator(".heat a.bad").click()
    opened.tab.wait_for_selector("pre.cause")
    assert opened.texts("main h2")[0].endswith(histories.FAILING)


def test_a_finding_is_shown_once_with_what_it_was_before(opened: Opened) -> None:
    opened.go("#/findings")
    cells = opened.texts("main td")
    assert cells == ["2026-11-28", "caught", "missed on 2026-11-26", "tag-kept", histories.HOSTILE]


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explored")
    with Store(histories.write(folder / "history")) as store:
        for number, pairs in enumerate(histories.EXPLORED):
            histories.explore(store, f"explore-{number}", *pairs)
        return write_page(store, folder / "page")


def test_explored_pairs_are_a_table_of_first_and_next_step(chromium: Any, explored: Path) -> None:
    opened = Opened(chromium, explored)
    opened.go("#/findings")
    assert opened.tab.get_by_role("region", name="Pairs of steps of raw").count() == 1
    described = opened.tab.locator(".pairs").get_attribute("aria-describedby")
    (about,) = opened.texts(f"#{described}")
    assert about.startswith(
        "2 explorations with the alphabet raw: of 4 pairs of steps that were possible, 3 were made, 1 never."
    )
    assert opened.texts(".pairs tbody th[scope='row']") == ["(begin)", histories.HOSTILE, "plug"]
    heads = opened.evaluate(
        "[...document.querySelectorAll('.pairs th[scope=col]')].map(th => th.textContent)"
    )
    assert heads == ["first", "plug", "stop", "unplug"]
    cells = opened.evaluate("[...document.querySelectorAll('.pairs tbody td')].map(td => td.textContent)")
    assert cells == ["3", "", "", "5", "", "", "", "never", "1,200"]
    titles = opened.evaluate("[...document.querySelectorAll('.pairs td[title]')].map(td => td.title)")
    assert "plug, then stop: never" in titles
    opened.tab.get_by_text("1 pair never made").click()
    assert opened.texts("details td") == ["plug", "stop"]
    assert opened.complaints == []
    assert {url.partition("#")[0] for url in opened.requests} == {explored.as_uri()}
    opened.tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_explored_pairs_fit_a_phone_and_their_numbers_can_be_read(
    chromium: Any, explored: Path, scheme: str
) -> None:
    opened = Opened(chromium, explored, viewport=PHONE, color_scheme=scheme)
    opened.go("#/findings")
    assert opened.evaluate(WIDE) == 0, "the page scrolls sideways"
    assert opened.evaluate(NAMES) == []
    assert opened.evaluate(DIM) == []
    opened.tab.locator(".scroll[role=region]").focus()
    assert opened.evaluate("document.activeElement.getAttribute('role')") == "region"
    opened.tab.close()


def test_a_benchmark_and_faults_are_no_night(chromium: Any, tmp_path: Path) -> None:
    path = histories.write(tmp_path / "history")
    with Store(path) as store:
        late = "2026-11-29T02:00:00+00:00"
        for kind in ("faults", "bench"):
            run = store.begin_run(
                rows.Run(uuid=kind, kind=kind, begun=late, host="ci", cores=1, harness_version="0.1.0")
            )
        store.add_result(
            rows.Result(
                run_id=run,
                nodeid="bench/start::boot",
                test="bench/start::boot",
                guarantees=("bench",),
                outcome="passed",
                begun=late,
                seconds=2.0,
            )
        )
        made = Opened(chromium, write_page(store, tmp_path / "page"))
    assert made.texts("main h2") == ["Night of 2026-11-28"]
    assert "bench" not in made.texts(".heat .group th")
    assert made.texts(".tiles b") == ["1", "0", "3", "3", "1"]
    made.go("#/tests?guarantee=bench")
    assert made.texts("main td a") == ["bench/start::boot"]
    assert made.complaints == []
    made.tab.close()


def test_runs_say_which_is_incomplete_and_what_it_was_running(opened: Opened) -> None:
    opened.go("#/runs")
    first = opened.texts("main tbody tr")[0]
    assert "incomplete" in first
    assert "(7 expected); running: test_x.py::test_y" in first


@pytest.mark.parametrize("view", ["#/failure/none", "#/test/none", "#/test/%E0%A4%A"])
def test_an_address_that_leads_nowhere_says_so(opened: Opened, view: str) -> None:
    opened.go(view)
    assert opened.texts("main h2")[0].startswith("No such")


NAMES = """[...document.querySelectorAll(
    'a, button, input, select, summary, svg.plot, [role=region], [role=img]')]
  .filter(one => one.getClientRects().length && !(one.getAttribute('aria-label') || one.textContent.trim()
    || (one.labels && one.labels.length)))
  .map(one => one.outerHTML.slice(0, 80))"""
WIDE = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
#: The contrast of each text's color with what is behind it (WCAG 2.1, 1.4.3), where it is below 4.5.
DIM = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = one => { for (; one; one = one.parentElement) {
    const c = parse(getComputedStyle(one).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } };
  const hasText = one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll('main *, nav a, label, footer')].filter(
    one => !one.closest('svg') && hasText(one) && one.getClientRects().length).map(one => {
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), one.className, one.textContent.slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_view_is_readable_in_each_scheme_and_on_a_phone(
    chromium: Any, index: Path, scheme: str, view: str
) -> None:
    for size in (DESK, PHONE):
        made = Opened(chromium, index, viewport=size, color_scheme=scheme)
        made.go(view)
        assert made.evaluate(NAMES) == []
        assert made.evaluate(DIM) == []
        assert made.evaluate(WIDE) == 0, "the page is wider than the screen"
        assert made.complaints == []
        made.tab.close()


def test_a_view_that_is_not_readable_is_noticed(opened: Opened) -> None:
    opened.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<a href=x></a>')")
    opened.evaluate(
        "document.querySelector('main > a').style.cssText = 'display: inline-block; padding: 9px'"
    )
    assert opened.evaluate(NAMES) != []
    opened.evaluate("document.querySelector('main h2').style.color = '#ccc'")
    assert opened.evaluate(DIM) != []
    opened.evaluate("document.querySelector('main h2').style.width = '5000px'")
    assert opened.evaluate(WIDE) > 0


def test_dark_and_light_differ(chromium: Any, index: Path) -> None:
    colors = []
    for scheme in ("light", "dark"):
        made = Opened(chromium, index, color_scheme=scheme)
        colors.append(made.evaluate("getComputedStyle(document.body).backgroundColor"))
        made.tab.close()
    assert len(set(colors)) == 2


def test_the_policy_refuses_a_request(chromium: Any, index: Path) -> None:
    made = Opened(chromium, index)
    refused = made.evaluate("fetch('http://127.0.0.1:9/x').then(() => 'sent', error => String(error))")
    assert refused.startswith("TypeError")
    assert any("Content Security Policy" in text for text in made.complaints)
    made.tab.close()


def test_one_run_has_a_matrix_instead_of_a_heat_map(chromium: Any, tmp_path: Path) -> None:
    with Store(histories.write(tmp_path / "history", histories.NIGHTS[-1:])) as store:
        made = Opened(chromium, write_page(store, tmp_path / "page"))
    assert made.texts(".matrix thead th") == ["Guarantee", "7.2, pc", "7.2, q35", "11.1, pc"]
    cell = made.texts(".matrix tbody tr:first-child td:nth-child(2)")
    assert cell == ["1 passed\n1 known bug (R1)"]
    assert made.tab.locator(".heat").count() == 0
    made.tab.close()


def test_the_overview_says_what_the_history_says(chromium: Any, tmp_path: Path) -> None:
    plan = generator.Plan(regression=19, fix=19, flaky=0.4, skips=None, gone=19)
    generator.write(tmp_path / "nights.sqlite", plan, nights=20)
    with Store(tmp_path / "nights.sqlite", read_only=True) as store:
        found = report(load(store))
        made = Opened(chromium, write_page(store, tmp_path / "page", report=found))
    heads = made.texts("main h3")
    for head in ("New failures: 3 tests, probably 1 cause", "Fixed: 1 test", "Flaky: 1", "Newly not run"):
        assert head in heads
    (card,) = made.texts(".card")
    assert "failed 12 of 12 times" in card
    assert "QEMU build-id 000000000000 → 131313131313" in card
    assert "harness bisect scenarios/test_crash.py::test_crash_0 --machine pc --releases" in card
    made.tab.get_by_label("Machine type").select_option("q35")
    assert "Fixed: 1 test" in made.texts("main h3")
    assert "Flaky: 1" not in made.texts("main h3")
    made.tab.locator(".card .cause a").first.click()
    made.tab.wait_for_selector("pre.cause")
    assert made.texts("pre.cause") == [generator.CAUSE]
    since = dict(zip(made.texts("main dt"), made.texts("main dd"), strict=True))
    assert since["First bad"] == "2026-10-19 02:00 UTC"
    assert since["Last good"] == "2026-10-18 02:00 UTC"
    assert made.complaints == []
    made.tab.close()


def test_a_flaky_test_says_what_differed_between_its_timelines(chromium: Any, tmp_path: Path) -> None:
    generator.write(tmp_path / "nights.sqlite", generator.Plan(flaky=0.4), nights=20)
    for name, event in (("bad", "DEVICE_UNPLUG_GUEST_ERROR"), ("good", "DEVICE_DELETED")):
        writer = Writer()
        writer.event(0.4, event, device="share0")
        writer.write(tmp_path / name)
    with closing(sqlite3.connect(tmp_path / "nights.sqlite")) as database, database:
        bad, good = str(tmp_path / "bad"), str(tmp_path / "good")
        database.execute("UPDATE result SET artefacts = ? WHERE outcome = 'new failure'", [bad])
        database.execute("UPDATE confirmation SET artefacts = ? WHERE outcome = 'passed'", [good])
    with Store(tmp_path / "nights.sqlite", read_only=True) as store:
        made = Opened(chromium, write_page(store, tmp_path / "page", report=report(load(store))))
    assert "only when it failed: source: DEVICE_UNPLUG_GUEST_ERROR" in made.texts("main")[0]
    assert made.complaints == []
    made.tab.close()


def test_a_cause_has_one_card_with_its_other_messages(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "nights.sqlite"
    generator.write(path, generator.Plan(regression=9), nights=10)
    other = generator.SIGNATURE.replace("was killed", "was killed again")
    with closing(sqlite3.connect(path)) as history, history:
        change = "UPDATE result SET signature = ?, cause = ? WHERE run_id = 10 AND test LIKE '%crash_2%'"
        history.execute(change, (other, "QemuDied: " + "again " * 99))
    with Store(path, read_only=True) as store:
        made = Opened(chromium, write_page(store, tmp_path / "page", report=report(load(store))))
    assert "New failures: 3 tests, probably 1 cause" in made.texts("main h3")
    assert made.texts(".tiles li")[0] == "3\nnew failures"
    (card,) = made.texts(".card")
    assert "failed 12 of 12 times" in card
    (message,) = made.texts(".card li.cause")
    assert message.startswith("QemuDied: again again")
    assert message.endswith("… 1 test")
    assert len(message) < 220
    made.tab.locator(".card li.cause a").click()
    made.tab.wait_for_selector("pre.cause")
    assert made.texts("main h2")[0].endswith("test_crash_2[pc]")
    made.go("#/?text=again")
    assert made.tab.locator(".card").count() == 1, "a filter finds the other messages, too"
    assert made.complaints == []
    made.tab.close()


def test_on_a_phone_the_values_of_a_list_have_their_heads_and_a_timeline_begins_at_its_end(
    chromium: Any, index: Path
) -> None:
    made = Opened(chromium, index, viewport=PHONE)
    made.go("#/tests")
    head = "getComputedStyle(document.querySelector('td:nth-child(5)'), '::before').content"
    assert made.evaluate(head) == '"Failed"'
    made.go("failure")
    made.tab.wait_for_function("document.querySelector('.timeline-box').scrollLeft > 0")
    at_end = "(box => box.scrollLeft + box.clientWidth >= box.scrollWidth - 1)"
    assert made.evaluate(f"{at_end}(document.querySelector('.timeline-box'))")
    made.tab.close()
    wide = Opened(chromium, index)
    wide.go("#/tests")
    assert wide.evaluate(head) == "none"
    wide.tab.close()


def test_nights_of_one_day_are_told_apart(chromium: Any, tmp_path: Path) -> None:
    path = histories.write(tmp_path / "history")
    with Store(path) as store:
        for hour in ("05", "06"):
            run = rows.Run(
                uuid=hour,
                kind="scenarios",
                begun=f"2026-11-28T{hour}:30:00+00:00",
                host="ci",
                cores=1,
                harness_version="0.1.0",
                options=("--thorough",),
            )
            store.add_result(
                rows.Result(
                    run_id=store.begin_run(run),
                    nodeid="t",
                    test="t",
                    guarantees=(histories.LEAK,),
                    outcome="passed",
                    begun=run.begun,
                    seconds=1.0,
                )
            )
        made = Opened(chromium, write_page(store, tmp_path / "page"))
    assert [text for text in made.texts(".heat thead th") if text] == ["11-27", "06:30"]
    assert made.texts("main h2") == ["Night of 2026-11-28 06:30:00"]
    made.tab.close()


def test_sixty_nights_are_shown_and_all_when_asked_for(chromium: Any, tmp_path: Path) -> None:
    generator.write(tmp_path / "nights.sqlite", generator.Plan(tests=9, machines=("pc",)), nights=70)
    with Store(tmp_path / "nights.sqlite", read_only=True) as store:
        made = Opened(chromium, write_page(store, tmp_path / "page"))
    for asked, shown in (("", 60), ("7", 7), ("all", 70)):
        made.tab.get_by_label("Nights").select_option(asked)
        assert made.tab.locator(".heat tbody tr:nth-child(2) a").count() == shown
    assert made.complaints == []
    made.tab.close()


def test_ten_thousand_results_are_shown(chromium: Any, tmp_path: Path) -> None:
    generator.write(
        tmp_path / "nights.sqlite", generator.Plan(tests=167, regression=55, flaky=0.2), nights=60
    )
    with Store(tmp_path / "nights.sqlite", read_only=True) as store:
        made = Opened(chromium, write_page(store, tmp_path / "page"))
    assert made.texts("footer")[0].startswith("10020 results of 60 runs")
    made.go("#/results")
    assert made.texts("main h2") == ["10020 results"]
    assert made.tab.locator("main tbody tr").count() == 200
    made.tab.get_by_role("button", name="Show more").click()
    assert made.tab.locator("main tbody tr").count() == 1200
    made.tab.close()


def test_an_empty_history_is_shown(chromium: Any, tmp_path: Path) -> None:
    with Store(tmp_path / "empty.sqlite") as store:
        made = Opened(chromium, write_page(store, tmp_path / "page"))
    for view in ("#/", "#/tests", "#/results", "#/findings", "#/runs"):
        made.go(view)
    assert made.complaints == []
    made.tab.close()
