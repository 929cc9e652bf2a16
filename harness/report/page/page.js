"use strict";
// The page of a history: reads the data that is part of it, and shows the view that the URL's fragment names.
// Text enters the document as text nodes alone. Nothing is fetched.
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const OUTCOMES = [["passed", "ok", ""], ["known bug", "known", "k"], ["new failure", "bad", "✗"], ["fixed", "fixed", "+"],
    ["skipped", "skip-o", "–"]];
  const [PASSED, KNOWN, FAILED, FIXED, SKIPPED] = [0, 1, 2, 3, 4];
  const WORST = [FAILED, FIXED, KNOWN, PASSED, SKIPPED];
  const R = D.results, COUNT = R.test.length;
  const main = document.getElementById("main"), form = document.getElementById("filters");
  // Runs of scenarios are the nights. Benchmarks have results as well; faults and explorations have findings.
  const ofScenarios = run => run.kind === "scenarios" || run.kind === "merge";
  const withResults = new Set(R.run);
  const NIGHTS = [...new Set(D.runs.filter((run, n) => ofScenarios(run) || withResults.has(n)).map(run => run.night))].sort();
  const nightIndex = new Map(NIGHTS.map((night, index) => [night, index]));
  const LAST = Math.max(-1, ...D.runs.filter(ofScenarios).map(run => nightIndex.get(run.night)));
  const nightOf = result => nightIndex.get(D.runs[R.run[result]].night);
  const failureOf = new Map(D.failures.map(failure => [failure.result, failure]));
  const byTest = new Map();
  for (let i = 0; i < COUNT; i++) {
    const list = byTest.get(R.test[i]);
    if (list) list.push(i); else byTest.set(R.test[i], [i]);
  }

  // Elements

  function h(tag, attributes, ...children) {
    return filled(document.createElement(tag), attributes, children);
  }
  function s(tag, attributes, ...children) {
    return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }
  function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
    return element;
  }
  const badge = outcome => h("span", { class: `badge ${OUTCOMES[outcome][1]}` }, OUTCOMES[outcome][0]);
  const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  // "1 new failure", "2 new failures", "2 passed".
  const named = (number, outcome) => outcome === FAILED || outcome === KNOWN ? plural(number, OUTCOMES[outcome][0]).replace(/^\d+ /, "") : OUTCOMES[outcome][0];
  const seconds = value => value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`;
  const time = iso => iso ? `${iso.slice(0, 16).replace("T", " ")} UTC` : "";
  const testHref = (test, lane) => `#/test/${encodeURIComponent(D.tests[test].name)}${lane === undefined ? "" : `?lane=${lane}`}`;
  const failureHref = failure => `#/failure/${failure.id}`;
  // A lane is called by what differs between lanes, and always by its machine type.
  const varies = name => new Set(D.lanes.filter(lane => lane.qemu).map(lane => lane[name])).size > 1;
  const NAMED = [["kernel", kernel => `Linux ${kernel}`], ["arch", arch => arch], ["machine", machine => machine]].filter(([name]) => name === "machine" || varies(name));
  // A QEMU given by path is called by the end of it, where that is enough.
  const tail = path => path.split("/").slice(-2).join("/");
  const tails = D.lanes.map(lane => lane.qemu).filter((path, n, all) => all.indexOf(path) === n).map(tail);
  const qemuName = path => path.split("/").length > 3 && tails.filter(one => one === tail(path)).length === 1 ? `…/${tail(path)}` : path;
  const LANES = D.lanes.map(lane => [lane.qemu && varies("qemu") && qemuName(lane.qemu), ...NAMED.map(([name, shown]) => lane[name] && shown(lane[name])),
    lane.qemu && !lane.machine && "any machine type"].filter(Boolean).join(", ") || "no QEMU");
  const laneName = lane => LANES[lane];
  const laneOf = result => D.cells[R.cell[result]].lane;
  const cause = result => R.text[result] < 0 ? "" : D.texts[R.text[result]];
  const bugOf = result => R.bug[result] < 0 ? "" : D.texts[R.bug[result]];

  function table(heads, rows, attributes) {
    const short = heads.map(head => head.endsWith("!"));
    return h("div", { class: "scroll" }, h("table", { class: "list", ...attributes },
      h("thead", {}, h("tr", {}, heads.map((head, i) => h("th", { scope: "col", class: short[i] && "short" }, head.replace("!", ""))))),
      h("tbody", {}, rows.map(row => h("tr", {}, row.map((cell, i) => h("td", { class: short[i] && "short", "data-head": heads[i].replace("!", "") }, cell)))))));
  }
  // A long list, a part at a time.
  function listed(heads, items, row, attributes, part = 200) {
    const box = h("div");
    const show = count => {
      const more = items.length > count && h("button", { type: "button", onclick: () => show(count + 5 * part) },
        `Show more (${items.length - count} left)`);
      box.replaceChildren(items.length ? table(heads, items.slice(0, count).map(row), attributes)
        : h("p", { class: "empty" }, "Nothing matches the filters."), more || "");
    };
    show(part);
    return box;
  }

  // Filters. They are part of the fragment, so that a view can be sent as a link.

  // So many nights are shown unless another number is asked for.
  const NEWEST = 60;
  function firstNight(query) {
    const asked = query.get("nights"), count = asked === "all" || query.has("night") ? NIGHTS.length : Number(asked) || NEWEST;
    return Math.max(0, NIGHTS.length - count);
  }
  const unique = values => [...new Set(values.filter(Boolean))].sort();
  const FILTERS = [
    { name: "text", label: "Test or cause contains", wide: true },
    { name: "guarantee", label: "Guarantee", values: D.guarantees },
    { name: "qemu", label: "QEMU", values: unique(D.lanes.map(lane => lane.qemu)) },
    { name: "machine", label: "Machine type", values: unique(D.lanes.map(lane => lane.machine)) },
    { name: "kernel", label: "Kernel", values: unique(D.lanes.map(lane => lane.kernel)) },
    { name: "outcome", label: "Outcome", values: OUTCOMES.map(outcome => outcome[0]) },
    { name: "nights", label: "Nights", any: NIGHTS.length > NEWEST ? `last ${NEWEST}` : "all",
      values: ["7", "30", "180", "all"].filter(n => n === "all" ? NIGHTS.length > NEWEST : Number(n) < NIGHTS.length) },
    { name: "night", label: "Night", values: [...NIGHTS].reverse(), only: "results" },
  ];

  function matching(query) {
    const text = (query.get("text") || "").toLowerCase();
    const guarantee = D.guarantees.indexOf(query.get("guarantee"));
    const outcome = OUTCOMES.findIndex(one => one[0] === query.get("outcome"));
    const first = firstNight(query);
    const night = query.has("night") ? nightIndex.get(query.get("night")) : -1;
    const lanes = D.lanes.map(lane => ["qemu", "machine", "kernel"].every(name => !query.get(name) || lane[name] === query.get(name)));
    const tests = D.tests.map(test => guarantee < 0 || test.guarantees.includes(guarantee));
    const named = D.tests.map(test => test.name.toLowerCase().includes(text));
    const caused = D.texts.map(one => one.toLowerCase().includes(text));
    const found = [];
    for (let i = 0; i < COUNT; i++) {
      if (lanes[laneOf(i)] && tests[R.test[i]] && (outcome < 0 || R.outcome[i] === outcome) && nightOf(i) >= first
        && (night < 0 || night === undefined || nightOf(i) === night)
        && (!text || named[R.test[i]] || (R.text[i] >= 0 && caused[R.text[i]]) || (R.bug[i] >= 0 && caused[R.bug[i]]))) found.push(i);
    }
    return found;
  }

  function fragment(path, query) {
    const text = [...query].filter(([, value]) => value).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
    return `#${path}${text ? `?${text}` : ""}`;
  }

  function showFilters(path, query) {
    const shown = FILTERS.filter(one => !one.values || one.values.length > (one.any ? 0 : 1) || query.has(one.name))
      .filter(one => !one.only || path === `/${one.only}`);
    const key = path + shown.map(one => one.name);
    if (form.dataset.key === key) {
      for (const one of shown) if (form.elements[one.name] !== document.activeElement) form.elements[one.name].value = query.get(one.name) || "";
      return;
    }
    form.dataset.key = key;
    const change = () => {
      const next = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      history.replaceState(null, "", fragment(path, next));
      show(true);
    };
    form.replaceChildren(...shown.map(one => h("div", { class: one.wide && "wide" }, h("label", { for: `by-${one.name}` }, one.label),
      one.values ? h("select", { id: `by-${one.name}`, name: one.name, onchange: change }, h("option", { value: "" }, one.any || "all"),
        one.values.map(value => h("option", { value }, value)))
        : h("input", { id: `by-${one.name}`, type: "search", name: one.name, oninput: change, autocomplete: "off" }))),
    h("button", { type: "button", onclick: () => { form.reset(); change(); } }, "Clear"));
    for (const one of shown) form.elements[one.name].value = query.get(one.name) || "";
  }
  form.addEventListener("submit", event => event.preventDefault());

  // Overview

  function overview(query) {
    const found = matching(query).filter(i => ofScenarios(D.runs[R.run[i]])), last = LAST;
    const latest = found.filter(i => nightOf(i) === last);
    const counts = OUTCOMES.map((_, outcome) => latest.filter(i => R.outcome[i] === outcome).length);
    const bad = latest.filter(i => R.outcome[i] === FAILED || R.outcome[i] === FIXED);
    const incomplete = D.runs.filter(run => run.night === NIGHTS[last] && !run.ended);
    return [
      h("h2", {}, D.one ? `Run of ${time(D.runs[0] && D.runs[0].begun)}` : `Night of ${NIGHTS[last] || "no run yet"}`),
      varies("qemu") ? null : h("p", { class: "soft" }, `QEMU ${unique(latest.map(i => D.cells[R.cell[i]].qemu)).join("; ")}`),
      incomplete.map(run => h("p", {}, h("strong", {}, "Incomplete run: "), `${run.kind} of ${time(run.begun)}`,
        run.running.length ? `; it was running ${run.running.join(", ")}` : "")),
      h("ul", { class: "tiles" }, [FAILED, FIXED, KNOWN, PASSED, SKIPPED].map(outcome => h("li", {}, h("a", {
        href: fragment("/results", new URLSearchParams([...query, ["night", NIGHTS[last] || ""], ["outcome", OUTCOMES[outcome][0]]])),
        class: outcome === FAILED && counts[outcome] ? "has-bad" : null }, h("b", {}, String(counts[outcome])), named(counts[outcome], outcome))))),
      D.report ? newFailures(query)
        : bad.length ? [h("h3", {}, "Where to look"), listed(["Outcome!", "Test and cause", "On!", "Again!"], bad, row4, {}, 50)] : null,
      h("h3", {}, D.one ? "Guarantees" : "Guarantee, QEMU and machine type over the nights"),
      D.one ? matrix(found) : heatMap(found, query),
      D.gaps.length ? [h("h3", {}, "Not asserted"), table(["Guarantee", "On", "Why"], D.gaps.map(gap => [gap.guarantee, gap.on, gap.why]))] : null,
      D.report ? otherNews(query) : null,
      skips(latest),
    ];
  }

  // What the history says about its newest night (harness nights): computed where the page was made.

  function placeMatches(query) {
    const guarantee = D.guarantees.indexOf(query.get("guarantee")), text = (query.get("text") || "").toLowerCase();
    const tests = new Map(D.tests.map(test => [test.name, test]));
    return (place, cause_ = "") => ["qemu", "kernel"].every(name => !query.get(name) || place[name] === query.get(name))
      && (!query.get("machine") || place.machine_type === query.get("machine"))
      && (guarantee < 0 || (tests.get(place.test) || { guarantees: [] }).guarantees.includes(guarantee))
      && (!text || place.test.toLowerCase().includes(text) || cause_.toLowerCase().includes(text));
  }
  const laneAt = place => D.lanes.findIndex(lane => lane.qemu === place.qemu && lane.kernel === place.kernel && lane.arch === place.arch && lane.machine === place.machine_type);
  function placeLink(place) {
    const test = D.tests.findIndex(one => one.name === place.test), lane = laneAt(place);
    const on = lane < 0 ? place.machine_type : laneName(lane);
    return [test < 0 ? place.test : h("a", { href: testHref(test, lane < 0 ? undefined : lane) }, place.test), h("span", { class: "soft" }, ` ${on}`)];
  }
  function lastFailure(place) {
    const test = D.tests.findIndex(one => one.name === place.test), lane = laneAt(place);
    const found = (byTest.get(test) || []).filter(i => laneOf(i) === lane && R.outcome[i] === FAILED && failureOf.has(i));
    return found.length ? failureOf.get(found[found.length - 1]) : null;
  }
  const differences = changed => changed.length ? h("ul", { class: "plain" }, changed.map(one => h("li", {}, `${one.what} ${one.before || "none"} → ${one.after || "none"}`)))
    : "nothing that the history records";
  const share = of => `${of.failures} of ${of.attempts}`;
  const percent = of => `${share(of)} (${Math.round(100 * of.low)} to ${Math.round(100 * of.high)} %)`;
  const build = night => night && [night.qemu, night.package_version || night.git_describe || night.version].filter(Boolean).join(" ");
  const facts = rows => h("dl", {}, rows.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  const placesOf = places => h("ul", { class: "plain" }, places.slice(0, 8).map(place => h("li", {}, placeLink(place))),
    places.length > 8 ? h("li", { class: "soft" }, `and ${places.length - 8} more`) : null);

  function newFailures(query) {
    const matches = placeMatches(query), shown = D.report.new.filter(one => one.ways.some(way => way.tests.some(place => matches(place, way.cause))));
    const tests = new Set(shown.flatMap(one => one.tests.map(place => JSON.stringify(place)))).size;
    const head = tests > 1 ? `${plural(tests, "test")}, probably ${plural(shown.length, "cause")}` : tests ? "1 test" : "none";
    return [h("h3", {}, `New failures: ${head}`), shown.map(one => h("section", { class: "card", "aria-label": "New failure" },
      message(one, "p"),
      facts([["Guarantee", one.guarantees.join(", ")], ["At fault", one.of_the_host && "the host or the harness, not QEMU"],
        ["Run again", one.again ? `failed ${share(one.again)} times` : "not run again (pytest --confirm N)"],
        ["First bad", `${time(one.first_bad.begun)}, ${build(one.first_bad)}`],
        ["Last good", one.last_good ? `${time(one.last_good.begun)}, ${build(one.last_good)}; ${plural(one.good_nights, "night")} in a row` : "never in this history"],
        ["Changed between", one.last_good && differences(one.changed)], ["Tests", placesOf(one.tests)],
        ["Otherwise", one.ways.length > 1 && h("ul", { class: "plain apart" }, one.ways.slice(1, 6).map(way => message(way, "li")),
          one.ways.length > 6 ? h("li", { class: "soft" }, `and ${plural(one.ways.length - 6, "other message")}`) : null)]]),
      h("pre", { tabindex: "0", role: "region", "aria-label": "Commands" }, [one.timeline, one.replay, one.bisect].filter(Boolean).join("\n"))))];
  }
  // The beginning of a message; the page of the failure has all of it.
  function shortened(text) {
    const plain = text.replace(/^harness\.errors\./, "");
    return plain.length > 200 ? `${plain.slice(0, 199)}…` : plain;
  }
  // The message of a cause, or of one of its ways, with a link to the failure.
  function message(one, tag) {
    const failure = lastFailure(one.tests[0]), text = shortened(one.cause);
    return h(tag, { class: "cause" }, failure ? h("a", { href: failureHref(failure) }, text) : text, tag === "li" && h("span", { class: "soft" }, ` ${plural(one.tests.length, "test")}`));
  }

  function otherNews(query) {
    const matches = placeMatches(query), any = one => one.tests.some(place => matches(place, one.cause));
    const of = D.report, standing = of.standing.filter(any), flaky = of.flaky.filter(one => matches(one.test));
    const gone = [...of.fixed, ...of.ended].filter(any), met = of.met.filter(any);
    const trends = of.trends.filter(one => one.series.some(moved => matches(moved.test)));
    const since = night => night ? night.begun.slice(0, 10) : "never";
    // One entry may be of many tests: those are counted.
    const tests = list => new Set(list.flatMap(one => one.tests ? one.tests.map(place => JSON.stringify(place)) : [one])).size;
    const section = (title, list, heads, row) => list.length ? [h("h3", {}, `${title}: ${list[0].tests ? plural(tests(list), "test") : list.length}`), listed(heads, list, row, {}, 20)] : null;
    return [
      section("Failures that began earlier", standing, ["Since!", "Cause and tests", "Changed then"], one => [since(one.first_bad), [shortened(one.cause), placesOf(one.tests)], one.last_good ? differences(one.changed) : ""]),
      section("Fixed", gone, ["Since!", "What", "Changed then"], one => [since(one.first), [one.bug ? `known bug ${one.bug}` : shortened(one.cause), one.signatures.length > 1 && h("div", { class: "soft" }, `and ${plural(one.signatures.length - 1, "other message")}`), placesOf(one.tests)], differences(one.changed)]),
      section("Known bugs that a test did not meet before", met, ["Since!", "What", "Changed then"], one => [since(one.first), [one.bug, placesOf(one.tests)], differences(one.changed)]),
      section("Flaky", flaky, ["Failed in!", "Switches!", "Run again!", "Test", "Since"], one => [percent(one.rate), String(one.switches), one.again.attempts ? `${share(one.again)} failed` : "",
        [placeLink(one.test), h("div", { class: "soft" }, Object.keys(one.signatures)[0] || ""),
          one.timeline && h("div", { class: "soft" }, one.timeline)], one.since ? [since(one.since.first), differences(one.since.changed)] : ""]),
      section("Trends", trends, ["On!", "What", "Tests", "Changed then"], one => [since(one.first),
        `${one.shape} of ${one.name === "seconds" ? "duration" : one.name}${one.factor ? `: ${one.factor.toFixed(2)} times` : ""}, in ${one.series.length} of ${plural(one.of, "test")}`,
        h("ul", { class: "plain" }, one.series.slice(0, 5).map(moved => h("li", {}, `${moved.before.toPrecision(3)} → ${moved.after.toPrecision(3)} ${one.unit} `, placeLink(moved.test)))), differences(one.changed)]),
      notRun(matches),
    ];
  }

  function notRun(matches) {
    const of = D.report, on = one => [one.qemu, one.kernel, one.arch, one.machine_type].filter(Boolean).join(", ");
    const rows = [
      ...of.gone_cells.map(one => ["a cell", on(one), `last on ${one.last.slice(0, 10)}`]),
      ...of.gone.map(one => [plural(one.tests.length, "test"), placesOf(one.tests.filter(place => matches(place))), `not in the newest run; in that of ${one.before.slice(0, 10)}`]),
      ...of.skipped.map(one => [plural(one.tests.length, "test"), placesOf(one.tests.filter(place => matches(place))), `skipped now: ${one.why}; last run on ${one.last_run.slice(0, 10)}`]),
      ...of.not_asserted.map(one => ["a guarantee", `${one.guarantee} on ${one.qemu}`, `not asserted: ${one.why}${one.asserted ? `; last on ${one.asserted.slice(0, 10)}` : ""}`]),
    ];
    return rows.length ? [h("h3", {}, "Newly not run"), table(["What!", "Which", "Since"], rows)] : null;
  }

  function row4(i) {
    const failure = failureOf.get(i);
    return [badge(R.outcome[i]), [h("a", { href: failure ? failureHref(failure) : testHref(R.test[i]) }, D.tests[R.test[i]].name),
      h("div", { class: "soft" }, bugOf(i), bugOf(i) && cause(i) ? ": " : "", cause(i))], laneName(laneOf(i)), again(i)];
  }
  function again(i) {
    const found = D.confirmations[i];
    if (!found) return "";
    const same = 1 + found.filter(one => one.outcome === R.outcome[i]).length;
    return `${same} of ${found.length + 1}${same <= found.length ? ", flaky" : ""}`;
  }

  function skips(latest) {
    const reasons = new Map();
    for (const i of latest) if (R.outcome[i] === SKIPPED) reasons.set(cause(i), (reasons.get(cause(i)) || 0) + 1);
    return reasons.size ? [h("h3", {}, "What did not run"),
      table(["Tests!", "Why"], [...reasons].sort((a, b) => b[1] - a[1]).map(([why, count]) => [String(count), why || "no reason given"]))] : null;
  }

  function grouped(found, keyOf) {
    const groups = new Map();
    for (const i of found) for (const key of keyOf(i)) {
      const list = groups.get(key);
      if (list) list.push(i); else groups.set(key, [i]);
    }
    return groups;
  }
  const counted = list => OUTCOMES.map((_, outcome) => list.reduce((sum, i) => sum + (R.outcome[i] === outcome), 0));
  const worst = counts => WORST.find(outcome => counts[outcome]);
  const words = counts => OUTCOMES.map((_, outcome) => counts[outcome] && `${counts[outcome]} ${named(counts[outcome], outcome)}`).filter(Boolean).join(", ");

  function matrix(found) {
    const cells = grouped(found, i => D.tests[R.test[i]].guarantees.map(guarantee => `${guarantee} ${laneOf(i)}`));
    const lanes = D.lanes.map((_, lane) => lane).filter(lane => found.some(i => laneOf(i) === lane));
    const rows = D.guarantees.map((_, guarantee) => guarantee).filter(guarantee => lanes.some(lane => cells.has(`${guarantee} ${lane}`)));
    if (!rows.length) return h("p", { class: "empty" }, "Nothing matches the filters.");
    return h("div", { class: "scroll" }, h("table", { class: "matrix" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Guarantee"), lanes.map(lane => h("th", { scope: "col" }, laneName(lane))))),
      h("tbody", {}, rows.map(guarantee => h("tr", {}, h("th", { scope: "row" }, D.guarantees[guarantee]), lanes.map(lane => {
        const list = cells.get(`${guarantee} ${lane}`);
        if (!list) return h("td", {}, "–");
        const counts = counted(list);
        const query = new URLSearchParams({ guarantee: D.guarantees[guarantee], qemu: D.lanes[lane].qemu, machine: D.lanes[lane].machine });
        return h("td", { class: OUTCOMES[worst(counts)][1] }, OUTCOMES.map((one, outcome) => counts[outcome]
          ? h("div", {}, h("a", { href: fragment("/results", new URLSearchParams([...query, ["outcome", one[0]]])), style: "color: inherit" },
            `${counts[outcome]} ${named(counts[outcome], outcome)}`), " ", bugs(list, outcome)) : null));
      }))))));
  }
  const bugs = (list, outcome) => {
    const found = unique(list.filter(i => R.outcome[i] === outcome).map(bugOf));
    return found.length ? `(${found.join(" ")})` : "";
  };

  function heatMap(found, query) {
    const first = firstNight(query);
    const nights = NIGHTS.slice(first);
    const cells = grouped(found, i => D.tests[R.test[i]].guarantees.map(guarantee => (guarantee * D.lanes.length + laneOf(i)) * NIGHTS.length + nightOf(i)));
    const incomplete = new Set(D.runs.filter(run => !run.ended && ofScenarios(run)).map(run => run.night));
    const present = new Set([...cells.keys()].map(key => Math.floor(key / NIGHTS.length)));
    if (!present.size) return h("p", { class: "empty" }, "Nothing matches the filters.");
    const body = [];
    for (let guarantee = 0; guarantee < D.guarantees.length; guarantee++) {
      const lanes = D.lanes.map((_, lane) => lane).filter(lane => present.has(guarantee * D.lanes.length + lane));
      if (!lanes.length) continue;
      body.push(h("tr", { class: "group" }, h("th", { scope: "rowgroup" }, D.guarantees[guarantee])));
      for (const lane of lanes) body.push(h("tr", {}, h("th", { scope: "row", title: laneName(lane) }, laneName(lane)), nights.map((night, n) => {
        const list = cells.get((guarantee * D.lanes.length + lane) * NIGHTS.length + first + n);
        if (!list) return h("td", {}, h("span", { "aria-label": `${night}: nothing ran` }));
        const counts = counted(list), outcome = worst(counts), label = `${D.guarantees[guarantee]}, ${laneName(lane)}, ${night}: ${words(counts)}`;
        const next = { guarantee: D.guarantees[guarantee], qemu: D.lanes[lane].qemu, machine: D.lanes[lane].machine, kernel: D.lanes[lane].kernel, night };
        if (outcome === FAILED || outcome === FIXED) next.outcome = OUTCOMES[outcome][0];
        return h("td", { class: incomplete.has(night) ? "cut" : null }, h("a", { class: OUTCOMES[outcome][1], tabindex: "-1", title: label, "aria-label": label,
          href: fragment("/results", new URLSearchParams(next)) }, outcome === FAILED ? String(Math.min(counts[FAILED], 99)) : OUTCOMES[outcome][2]));
      })));
    }
    const every = nights.length < 22 ? 3 : 7;
    const heads = nights.map((night, n) => h("th", { scope: "col", "aria-label": night },
      (nights.length - 1 - n) % every === 0 ? h("span", {}, night.length > 10 ? night.slice(11, 16) : night.slice(5, 10)) : ""));
    const grid = h("table", { class: "heat", "aria-label": "Heat map; move with the arrow keys" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }), heads)), h("tbody", {}, body));
    const start = grid.querySelector("tbody a");
    if (start) start.tabIndex = 0;
    grid.addEventListener("keydown", event => moveInGrid(grid, event));
    const box = h("div", { class: "scroll" }, grid);
    requestAnimationFrame(() => { box.scrollLeft = box.scrollWidth; });
    return [legend(), box];
  }
  function legend() {
    return h("p", { class: "legend" }, OUTCOMES.map(one => h("span", {}, h("span", { class: `badge ${one[1]}` }, one[2] || "\u00a0"), ` ${one[0]}`)),
      h("span", {}, "a failed cell has the number of its failures"));
  }
  function moveInGrid(grid, event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const td = event.target.closest("td");
    if (!step || !td) return;
    const rows = [...grid.tBodies[0].rows];
    let y = rows.indexOf(td.parentElement), x = td.cellIndex, next = null;
    do {
      y += step[0]; x += step[1];
      if (y < 0 || y >= rows.length || x < 1 || x > td.parentElement.cells.length - 1) return;
      next = rows[y].cells[x] && rows[y].cells[x].querySelector("a");
    } while (!next);
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  // Results and tests

  function results(query) {
    const found = matching(query).sort((a, b) => nightOf(b) - nightOf(a) || WORST.indexOf(R.outcome[a]) - WORST.indexOf(R.outcome[b]));
    return [h("h2", {}, plural(found.length, "result")), h("p", { class: "soft" }, words(counted(found))),
      listed(["Night!", "Outcome!", "Test and cause", "On!", "Took!", "Again!"], found, i => {
        const [outcome, test, on, confirmed] = row4(i);
        const also = failureOf.has(i) && [" ", h("a", { class: "soft", href: testHref(R.test[i], laneOf(i)) }, "history")];
        return [NIGHTS[nightOf(i)], outcome, [test[0], also, test[1]], on, seconds(R.seconds[i]), confirmed];
      })];
  }

  function tests(query) {
    const groups = grouped(matching(query), i => [R.test[i] * D.lanes.length + laneOf(i)]);
    const rank = list => {
      const last = list[list.length - 1];
      return [WORST.indexOf(R.outcome[last]), -list.filter(i => R.outcome[i] === FAILED).length];
    };
    const items = [...groups].map(([key, list]) => {
      list.sort((a, b) => nightOf(a) - nightOf(b));
      return { key, list, rank: rank(list) };
    }).sort((a, b) => a.rank[0] - b.rank[0] || a.rank[1] - b.rank[1]);
    return [h("h2", {}, `${new Set(items.map(item => Math.floor(item.key / D.lanes.length))).size} tests, worst first`),
      listed(["Last!", "Test", "On!", D.one ? "" : "Last 30 nights!", "Failed!", "Median!"], items, ({ key, list }) => {
        const test = Math.floor(key / D.lanes.length), lane = key % D.lanes.length;
        return [badge(R.outcome[list[list.length - 1]]), h("a", { href: testHref(test, lane) }, D.tests[test].name), laneName(lane),
          D.one ? "" : strip(list), `${list.filter(i => R.outcome[i] === FAILED).length} of ${list.length}`, seconds(median(list.map(i => R.seconds[i])))];
      })];
  }
  const median = values => [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];

  function strip(list) {
    const nights = NIGHTS.slice(-30), from = NIGHTS.length - nights.length, at = grouped(list, i => [nightOf(i)]);
    const bad = list.filter(i => nightOf(i) >= from && R.outcome[i] === FAILED).length;
    return h("span", { class: "strip", role: "img", "aria-label": `${bad} failures in ${nights.length} nights` },
      nights.map((_, n) => h("i", { class: at.has(from + n) ? OUTCOMES[worst(counted(at.get(from + n)))][1] : "void" })));
  }

  function testView(name, query) {
    const test = D.tests.findIndex(one => one.name === name);
    if (test < 0) return missing("test", name);
    const all = [...(byTest.get(test) || [])].sort((a, b) => D.runs[R.run[a]].begun < D.runs[R.run[b]].begun ? -1 : 1);
    const lanes = unique(all.map(i => String(laneOf(i)))).map(Number);
    const list = query.has("lane") ? all.filter(i => laneOf(i) === Number(query.get("lane"))) : all;
    const bad = list.filter(i => failureOf.has(i) && R.outcome[i] !== KNOWN).reverse();
    const known = list.filter(i => R.outcome[i] === KNOWN).reverse();
    return [h("h2", {}, name), h("p", { class: "soft" }, D.tests[test].guarantees.map(one => D.guarantees[one]).join(", ")),
      lanes.length > 1 ? h("p", { class: "bar" }, h("a", { href: testHref(test), "aria-current": query.has("lane") ? null : "true" }, "all"), lanes.map(lane =>
        h("a", { href: testHref(test, lane), "aria-current": query.get("lane") === String(lane) ? "true" : null }, laneName(lane)))) : null,
      h("h3", {}, "History"), history_(list),
      h("h3", {}, "Times and measurements"), h("div", { class: "plots" }, plots(list)),
      h("h3", {}, `Failures (${bad.length})`), bad.length ? listed(["Night!", "Outcome!", "Cause", "On!", "Again!"], bad, i => failureRow(i), {}, 50) : h("p", { class: "empty" }, "None."),
      known.length ? [h("h3", {}, `Known bug (${known.length})`), listed(["Night!", "Outcome!", "Cause", "On!", "Again!"], known, i => failureRow(i), {}, 5)] : null];
  }
  function failureRow(i) {
    const failure = failureOf.get(i), text = `${bugOf(i)}${bugOf(i) && cause(i) ? ": " : ""}${cause(i)}` || "no cause was recorded";
    return [NIGHTS[nightOf(i)], badge(R.outcome[i]), failure ? h("a", { href: failureHref(failure) }, text) : text, laneName(laneOf(i)), again(i)];
  }

  function history_(list) {
    const lanes = [...grouped(list, i => [laneOf(i)])];
    const first = Math.min(...list.map(nightOf));
    const box = h("div", { class: "scroll" }, h("table", { class: "heat" }, h("tbody", {}, lanes.map(([lane, results_]) => {
      const at = grouped(results_, i => [nightOf(i)]);
      return h("tr", {}, h("th", { scope: "row" }, laneName(lane)), NIGHTS.slice(first).map((night, n) => {
        const found = at.get(first + n);
        if (!found) return h("td", {}, h("span", { "aria-label": `${night}: not run` }));
        const i = found.reduce((a, b) => WORST.indexOf(R.outcome[a]) <= WORST.indexOf(R.outcome[b]) ? a : b);
        const label = `${night}: ${OUTCOMES[R.outcome[i]][0]}${cause(i) ? `, ${cause(i)}` : ""}`, failure = failureOf.get(i);
        return h("td", {}, h("a", { class: OUTCOMES[R.outcome[i]][1], title: label, "aria-label": label,
          href: failure ? failureHref(failure) : fragment("/results", new URLSearchParams({ text: D.tests[R.test[i]].name, night })) }, OUTCOMES[R.outcome[i]][2]));
      }));
    }))));
    requestAnimationFrame(() => { box.scrollLeft = box.scrollWidth; });
    return box;
  }

  // Plots

  function plots(list) {
    const wanted = new Set(list);
    const ran = list.filter(i => R.outcome[i] !== SKIPPED);
    const all = [{ name: "duration", unit: "s", points: ran.map(i => [i, R.seconds[i]]) },
      ...D.measures.map(one => ({ ...one, points: one.result.map((i, n) => [i, one.value[n]]).filter(([i]) => wanted.has(i)) }))];
    return all.filter(one => one.points.length).map(one => plot(one.name, one.unit, one.points));
  }

  function nice(atLeast) {
    const power = 10 ** Math.floor(Math.log10(atLeast));
    return [1, 2, 5, 10].map(factor => factor * power).find(step => step >= atLeast * 0.999);
  }

  function plot(name, unit, points) {
    const W = 460, H = 190, L = 48, B = 22, T = 10, Rt = 10;
    const values = points.map(point => point[1]), low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9);
    const step = nice((high - low) / 4), top = Math.ceil(high / step - 1e-9) * step, bottom = Math.floor(low / step + 1e-9) * step;
    const nights = points.map(([i]) => nightOf(i)), from = Math.min(...nights), to = Math.max(...nights);
    const x = night => to === from ? (L + W - Rt) / 2 : L + (W - L - Rt) * (night - from) / (to - from);
    const y = value => T + (H - T - B) * (top - value) / (top - bottom);
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    const series = [...grouped(points.map((_, n) => n), n => [laneOf(points[n][0])])];
    const label = `${name} in ${unit}: median ${median(values).toPrecision(3)}, from ${Math.min(...values).toPrecision(3)} to ${Math.max(...values).toPrecision(3)}`;
    const lines = [];
    for (let value = bottom; value <= top + step / 2; value += step) lines.push(s("line", { class: "grid", x1: L, x2: W - Rt, y1: y(value), y2: y(value) }),
      s("text", { x: L - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)));
    const ends = from === to ? [from] : [from, to];
    return h("figure", {}, h("figcaption", {}, `${name} (${unit})`),
      s("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label }, lines,
        ends.map((night, n) => s("text", { x: x(night), y: H - 6, "text-anchor": ends.length === 1 ? "middle" : n ? "end" : "start" }, NIGHTS[night])),
        series.map(([, members], n) => s("g", { class: `s${n % 6}` },
          s("path", { d: members.map((m, k) => `${k ? "L" : "M"}${x(nightOf(points[m][0])).toFixed(1)} ${y(points[m][1]).toFixed(1)}`).join("") }),
          members.map(m => s("circle", { cx: x(nightOf(points[m][0])), cy: y(points[m][1]), r: 2.5 },
            s("title", {}, `${NIGHTS[nightOf(points[m][0])]}: ${points[m][1]} ${unit}, ${OUTCOMES[R.outcome[points[m][0]]][0]}`)))))),
      series.length > 1 ? h("div", { class: "legend" }, series.map(([lane], n) => h("span", { class: `s${n % 6}` }, h("i"), laneName(lane)))) : null,
      h("details", {}, h("summary", {}, "as a table"), table(["Night!", "On", `${unit}!`], points.map(([i, value]) => [NIGHTS[nightOf(i)], laneName(laneOf(i)), String(value)]))));
  }

  // A failure

  function failureView(id) {
    const failure = D.failures.find(one => one.id === id);
    if (!failure) return missing("failure", id);
    const i = failure.result, run = D.runs[R.run[i]], cell = D.cells[R.cell[i]];
    const facts = [["Test", h("a", { href: testHref(R.test[i], laneOf(i)) }, D.tests[R.test[i]].name)], ["Guarantee", D.tests[R.test[i]].guarantees.map(one => D.guarantees[one]).join(", ")],
      ["Known bug", bugOf(i)], ["QEMU", cell.qemu], ["Kernel", cell.kernel], ["Machine type", cell.machine], ["Run", `${run.kind} of ${time(run.begun)} on ${run.host}; it took ${seconds(R.seconds[i])}`],
      ["Harness", run.harness], ["Again", again(i) && [`${again(i)}: `, D.confirmations[i].map((one, n) => [n ? ", " : "", OUTCOMES[one.outcome][0],
        failure.again[n] ? [" (", h("a", { href: failure.again[n] }, "timeline"), ")"] : ""])]],
      ["Signature", failure.signature && h("code", {}, failure.signature)], ...since(D.one ? null : failure.since)];
    return [h("h2", {}, badge(R.outcome[i]), " ", D.tests[R.test[i]].name), h("pre", { class: "cause" }, cause(i) || "no cause was recorded"),
      h("dl", {}, facts.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      failure.commands.length ? [h("h3", {}, "Commands"), failure.commands.map(command => h("pre", {}, command))] : null,
      timeline(failure),
      failure.evidence.map(([title, lines]) => [h("h3", {}, title), h("pre", { tabindex: "0", role: "region", "aria-label": title }, lines.join("\n"))]),
      failure.files.length ? [h("h3", {}, "Files"), h("ul", {}, failure.files.map(([name, href]) => h("li", {}, h("a", { href }, name))))]
        : h("p", { class: "empty" }, failure.why || "The test's folder does not exist any more.")];
  }

  function since(found) {
    if (!found) return [];
    const changed = found.changed.length ? h("ul", { class: "plain" }, found.changed.map(line => h("li", {}, line))) : "nothing that the history records";
    return [["First bad", time(found.first_bad) || "before the nights that are shown"], ["Last good", time(found.last_good) || "never in this history"],
      ["Changed between", found.last_good && changed]];
  }

  function timeline(failure) {
    const text = D.timelines[failure.id];
    if (!text) return null;
    const parsed = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
    if (parsed.nodeName !== "svg") return null;
    const drawing = document.importNode(parsed, true), box = h("div", { class: "timeline-box", tabindex: "0", role: "region", "aria-label": "Timeline; + and - zoom" }, drawing);
    const stay = [...drawing.querySelectorAll(".stay")];
    let zoom = 1;
    const draw = (next, at = 0.5) => {
      const middle = (box.scrollLeft + box.clientWidth * at) / Math.max(1, drawing.clientWidth || box.clientWidth);
      zoom = Math.min(64, Math.max(1, next));
      drawing.classList.toggle("wide", zoom >= 6);
      drawing.setAttribute("width", `${Math.round(Math.max(700, box.clientWidth) * zoom)}`);
      box.scrollLeft = middle * Number(drawing.getAttribute("width")) - box.clientWidth * at;
    };
    box.addEventListener("scroll", () => { for (const one of stay) one.setAttribute("transform", `translate(${box.scrollLeft} 0)`); });
    box.addEventListener("keydown", event => {
      const next = { "+": zoom * 2, "=": zoom * 2, "-": zoom / 2, 0: 1 }[event.key];
      if (next) { event.preventDefault(); draw(next); }
    });
    box.addEventListener("wheel", event => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      draw(zoom * (event.deltaY < 0 ? 1.25 : 0.8), (event.clientX - box.getBoundingClientRect().left) / box.clientWidth);
    }, { passive: false });
    const button = (label, name, next) => h("button", { type: "button", "aria-label": name, onclick: () => draw(next()) }, label);
    // On a screen that is narrower than the timeline its end is shown: that is where the test failed.
    requestAnimationFrame(() => { draw(1); box.scrollLeft = box.scrollWidth; });
    return [h("h3", {}, "Timeline"), h("div", { class: "bar" }, button("+", "Zoom in", () => zoom * 2), button("−", "Zoom out", () => zoom / 2),
      button("Whole", "Show the whole timeline", () => 1), h("span", { class: "soft" }, "circles are events, arrows lead from device_del to its events; point at anything for details")), box];
  }

  // Faults, exploration, runs

  function findings() {
    if (!D.findings.length) return [h("h2", {}, "Faults and exploration"), h("p", { class: "empty" }, "None is recorded (harness faults run, harness explore: --record FILE).")];
    const kinds = unique(D.findings.map(one => one.kind));
    const called = { fault: "Faults", control: "QEMUs without a fault", finding: "Found by exploration",
      "known bug": "Known bugs that exploration met", coverage: "Coverage of the exploration, by alphabet" };
    return [h("h2", {}, "Faults and exploration"), D.pairs.map(one => [h("h3", {}, `Explored pairs of steps: ${one.alphabet}`), pairs(one)]), kinds.map(kind => {
      const list = D.findings.filter(one => one.kind === kind).reverse();
      const named = [...grouped2(list, one => one.name)].map(([, all]) => all);
      const latest = named.map(all => all[0]), before = new Map(named.map(all => [all[0], all.find(one => one.outcome !== all[0].outcome)]));
      const outcomes = [...grouped2(latest, one => one.outcome)].map(([outcome, all]) => `${all.length} ${outcome}`).join(", ");
      return [h("h3", {}, called[kind] || kind), kind === "fault" || kind === "control" ? h("p", { class: "soft" }, `${latest.length}: ${outcomes}`) : null,
        listed(["Night!", "Outcome!", "Before!", "Name", "Detail"], latest, one => [D.runs[one.run].night, one.outcome,
          before.get(one) ? `${before.get(one).outcome} on ${D.runs[before.get(one).run].night}` : "", one.name, [one.detail, one.artefacts && h("div", {}, h("code", {}, one.artefacts))]])];
    })];
  }
  // A row for each first step, a column for each next one. Where there is no number, the step was never possible there.
  function pairs(one) {
    const times = new Map(one.cells.map(([first, next, number]) => [`${first} ${next}`, number]));
    const most = Math.max(1, ...one.cells.map(cell => cell[2])), never = one.cells.filter(cell => cell[2] === 0);
    const name = first => first < 0 ? "(begin)" : one.steps[first];
    const firsts = [-1, ...one.steps.keys()].filter(first => one.cells.some(cell => cell[0] === first));
    const nexts = [...one.steps.keys()].filter(next => one.cells.some(cell => cell[1] === next));
    const cell = (first, next) => {
      const number = times.get(`${first} ${next}`), shade = number ? 8 + 32 * Math.log1p(number) / Math.log1p(most) : 0;
      return h("td", { class: number === 0 && "never", title: number === undefined ? null : `${name(first)}, then ${name(next)}: ${number || "never"}`,
        style: number ? `--shade: ${shade.toFixed(0)}%` : null }, number === undefined ? "" : number === 0 ? "never" : number.toLocaleString("en"));
    };
    const made = one.cells.length - never.length;
    const box = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Pairs of steps of ${one.alphabet}` }, h("table", { class: "pairs", "aria-describedby": `pairs-${one.alphabet}` },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "first"), nexts.map(next => h("th", { scope: "col" }, h("span", {}, name(next)))))),
      h("tbody", {}, firsts.map(first => h("tr", {}, h("th", { scope: "row" }, name(first)), nexts.map(next => cell(first, next)))))));
    const about = h("p", { class: "soft", id: `pairs-${one.alphabet}` }, `${plural(one.runs, "exploration")} with the alphabet ${one.alphabet}: of ${one.cells.length} pairs `
      + `of steps that were possible, ${made} were made, ${never.length} never. Rows: the first step; columns: the step directly after it.`);
    return [about, box, never.length ? h("details", {}, h("summary", {}, `${plural(never.length, "pair")} never made`),
      listed(["First!", "Then"], never, ([first, next]) => [name(first), name(next)])) : null];
  }
  function grouped2(list, keyOf) {
    const groups = new Map();
    for (const one of list) groups.set(keyOf(one), [...(groups.get(keyOf(one)) || []), one]);
    return groups;
  }

  function runs() {
    const tested = grouped([...R.test.keys()], i => [R.run[i]]);
    return [h("h2", {}, plural(D.runs.length, "run")), listed(["Begun!", "Kind!", "Results", "Host!", "Load!", "Harness", "Options"], D.runs.map((_, n) => n).reverse(), n => {
      const run = D.runs[n], list = tested.get(n) || [];
      return [time(run.begun), [run.kind, run.shard ? ` ${run.shard}` : ""], [run.ended ? "" : h("strong", {}, "incomplete "), words(counted(list)),
        run.expected && run.expected !== list.length ? ` (${run.expected} expected)` : "", run.running.length ? `; running: ${run.running.join(", ")}` : ""],
      run.host, run.load, run.harness, h("code", {}, run.options)];
    })];
  }

  function missing(what, name) {
    return [h("h2", {}, `No such ${what}`), h("p", {}, h("code", {}, name)), h("p", {}, h("a", { href: "#/" }, "Overview"))];
  }

  // Views

  function decoded(text) {
    try { return decodeURIComponent(text); } catch { return text; }
  }

  const VIEWS = [["/", "Overview", overview, true], ["/tests", "Tests", tests, true], ["/results", "Results", results, true],
    ["/findings", "Faults and exploration", findings, false], ["/runs", "Runs", runs, false]];
  let shownPath = null;

  function show(keepFocus) {
    const [, path = "/", text = ""] = /^#([^?]*)\??(.*)$/.exec(location.hash) || [];
    const query = new URLSearchParams(text), [, kind, name] = /^\/(test|failure)\/(.*)$/.exec(path) || [];
    const view = VIEWS.find(one => one[0] === path) || VIEWS[0];
    form.hidden = Boolean(kind) || !view[3];
    if (!form.hidden) showFilters(view[0], query);
    const content = kind === "test" ? testView(decoded(name), query) : kind === "failure" ? failureView(name) : view[2](query);
    main.replaceChildren(...content.flat(Infinity).filter(Boolean));
    document.getElementById("nav").replaceChildren(...VIEWS.filter(one => one[0] !== "/findings" || D.findings.length).map(([to, label, , filtered]) =>
      h("a", { href: filtered && !kind ? fragment(to, new URLSearchParams([...query].filter(([key]) => key !== "night"))) : `#${to}`, "aria-current": !kind && view[0] === to ? "page" : null }, label)));
    const heading = main.querySelector("h2");
    document.title = `${heading ? heading.textContent : ""} – ${D.title}`;
    if (!keepFocus && shownPath !== null && shownPath !== path) { main.focus({ preventScroll: true }); scrollTo(0, 0); }
    shownPath = path;
  }
  document.getElementById("foot").textContent = `${plural(COUNT, "result")} of ${plural(D.runs.length, "run")}; made ${time(D.made)} from ${D.source}`;
  addEventListener("hashchange", () => show(false));
  show(true);
})();
