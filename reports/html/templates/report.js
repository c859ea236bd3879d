"use strict";
// The list of cells, its filters, and the details of one cell. All text goes in as text: no markup is made of records.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tables, rare } = data;
  const columns = Object.fromEntries(Object.entries(data.columns).map(([name, column]) => [name, unpacked(column)]));
  const form = document.getElementById("filters");
  const status = document.getElementById("status");
  const body = document.querySelector("#list tbody");
  const more = document.getElementById("more");
  const dialog = document.getElementById("details");
  const AT_ONCE = 60;
  const CHOICES = ["backend", "implementation", "suite", "relation", "dtype", "since"];

  const numbers = new Intl.NumberFormat("en");
  const marks = data.marks.map(([name, symbol, tone]) => ({ name, symbol, tone }));
  const markPlaces = new Map(marks.map((mark, place) => [mark.name, place]));

  function quoted(word) {
    // As a shell needs it, and Python's shlex.quote writes it.
    return /^[\w@%+=:,.\/-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\"'\"'") + "'";
  }

  function unpacked(column) {
    if (Array.isArray(column)) return column;
    const values = [];
    for (let at = 0; at < column.runs.length; at += 2) {
      for (let left = column.runs[at + 1]; left > 0; left -= 1) values.push(column.runs[at]);
    }
    return values;
  }

  function cell(place) {
    const from = (table, column) => tables[table][columns[column][place]];
    const few = (name) => (rare[name] ? rare[name][place] : undefined);
    const [label, version, operation, configuration, environment] = from("kernels", "kernel");
    const [suite, relation, problem, mask, geometry, tier] = from("checks", "check").map((word) => tables.words[word]);
    const [mark, since, claimed, note, versions] = from("outcomes", "outcome");
    const [command, ofCell] = from("commands", "command");
    const dtype = from("dtypes", "dtype");
    const seed = few("seed") || 0;
    const id = few("id") || `${label}:${relation}:${problem}:${dtype}${seed ? `:seed${seed}` : ""}`;
    return {
      place, id, label, version, operation, configuration, suite, relation, case: problem, mask, geometry, tier, dtype,
      seed, since, claimed, note, versions,
      implementation: label,
      backend: label.split("/", 1)[0],
      environment: tables.environments[environment],
      mark: marks[mark],
      reasons: from("reasons", "reasons"),
      command: ofCell ? `${command} ${quoted(id)}` : command,
      batch: from("batches", "batch"),
      compared: columns.compared[place],
      mismatches: columns.mismatches[place],
      seconds: columns.seconds[place],
      ulp: columns.ulp[place],
      budget: columns.budget[place],
      digest: from("digests", "digest"),
      repro: few("repro"),
      resources: few("resources"),
      why: (few("why") || []).map((line) => tables.lines[line]),
      before: few("before"),
      drift: from("drifts", "drift"),
    };
  }

  const every = Array.from({ length: data.count }, (_, place) => cell(place));
  const places = new Map(every.map((one) => [one.id, one.place]));
  let listed = every;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function badge(mark) {
    const symbol = element("i", { "aria-hidden": "true" }, mark.symbol);
    return element("span", { class: `badge ${mark.tone}` }, symbol, ` ${mark.name}`);
  }

  function budget(value) {
    if (value === null) return "-";
    if (typeof value === "string") return "inf";
    return value === 0 ? "0" : String(Number(value.toPrecision(2)));
  }

  const whole = (value) => (value === null ? "-" : numbers.format(value));
  const link = (id) => `#cell=${encodeURIComponent(id)}`;

  // Filters

  function chosen() {
    const values = new FormData(form);
    const choices = Object.fromEntries(CHOICES.map((name) => [name, values.get(name)]));
    return { ...choices, text: values.get("text").trim().toLowerCase(), verdict: new Set(values.getAll("verdict")) };
  }

  function filter() {
    const wanted = chosen();
    const choices = CHOICES.filter((name) => wanted[name]);
    listed = every.filter(
      (one) =>
        wanted.verdict.has(one.mark.name) &&
        choices.every((name) => one[name] === wanted[name]) &&
        (!wanted.text ||
          one.id.toLowerCase().includes(wanted.text) ||
          one.reasons.some((reason) => reason.toLowerCase().includes(wanted.text)))
    );
    body.replaceChildren();
    show();
    const of = listed.length === data.count ? "All" : `${numbers.format(listed.length)} of`;
    status.textContent = `${of} ${numbers.format(data.count)} cells${listed.length ? ", the worst first." : "."}`;
  }

  function show() {
    const from = body.childElementCount;
    body.append(...listed.slice(from, from + AT_ONCE).map(row));
    const left = listed.length - body.childElementCount;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(left, AT_ONCE)} more of ${numbers.format(left)}`;
  }

  function row(one) {
    const anchor = element("a", { href: link(one.id) },
      element("span", { class: "label" }, one.label), " ",
      element("span", { class: "case" }, `${one.relation}, ${one.case}`), element("span", { class: "heard" }, `, ${one.dtype}`));
    const head = element("th", { scope: "row" }, anchor);
    const told = one.reasons.join("; ");
    if (told) head.append(element("span", { class: "why" }, told));
    const number = (value) => element("td", { class: "number" }, value);
    return element("tr", {},
      element("td", {}, badge(one.mark)), head, element("td", {}, one.suite), element("td", {}, one.dtype),
      number(budget(one.budget)), number(whole(one.ulp)), element("td", {}, one.since));
  }

  function setFilters(given) {
    form.reset();
    for (const name of CHOICES) {
      const value = given.get(name);
      if (value && [...form.elements[name].options].some((option) => option.value === value)) form.elements[name].value = value;
    }
    form.elements.text.value = given.get("text") || "";
    if (given.has("verdict")) {
      const wanted = new Set(given.get("verdict").split(","));
      for (const box of boxes()) box.checked = wanted.has(box.value);
    } else if (given.get("since") || given.get("relation")) {
      // Controls are cells of a baseline and of a relation, too.
      for (const box of boxes()) box.checked = true;
    }
  }

  const boxes = () => form.querySelectorAll("input[name=verdict]");

  function address() {
    const told = new URLSearchParams();
    const wanted = chosen();
    for (const name of [...CHOICES, "text"]) if (wanted[name]) told.set(name, wanted[name]);
    if ([...boxes()].some((box) => box.checked !== box.defaultChecked)) told.set("verdict", [...wanted.verdict].join(","));
    // Spaces as the page itself writes them, so that one place has one address.
    return told.size ? `#${String(told).replaceAll("+", "%20")}` : "#cells";
  }

  // Details of one cell

  function was(shown, now, then) {
    return then === null || then === undefined || then === now ? "" : `, was ${shown(then)}`;
  }

  function details(one) {
    const before = one.before;
    const about = [
      ["since baseline", one.since + (one.note ? `: ${one.note}` : "")],
      ["versions changed", one.versions],
      ["bits last changed", one.drift],
      ["error budget", one.budget === null ? "" : budget(one.budget) + was(budget, one.budget, before && before[1])],
      ["largest ULP", one.ulp === null ? "" : whole(one.ulp) + was(whole, one.ulp, before && before[2])],
      ["elements", one.compared ? `${numbers.format(one.compared)} compared, ${numbers.format(one.mismatches)} differ` : ""],
      ["claimed", { true: "yes", false: "no", null: "" }[one.claimed]],
      ["smallest batch", one.batch, "code"],
      ["digest", one.digest, "code"],
      ["digest before", before && before[3] !== one.digest ? before[3] : "", "code"],
      ["implementation", [one.label, one.version].filter(Boolean).join(" ")],
      ["operation", one.operation],
      ["configuration", one.configuration],
      ["suite, relation", `${one.suite}, ${one.relation}`],
      ["case", [one.case, one.dtype, `${one.tier} tier`, one.seed ? `seed ${one.seed}` : ""].filter(Boolean).join(", ")],
      ["mask, geometry", [one.mask, one.geometry].filter(Boolean).join(", ")],
      ["compiled", one.resources],
      ["ran on", one.environment],
      ["seconds", one.seconds ? String(one.seconds) : ""],
      ["cell id", one.id, "code"],
    ];
    const list = element("dl");
    for (const [name, value, kind] of about) {
      if (value) list.append(element("dt", {}, name), element("dd", {}, kind ? element(kind, {}, value) : value));
    }
    const parts = [element("p", {}, badge(one.mark))];
    if (one.reasons.length) parts.push(element("div", { class: "reasons" }, ...one.reasons.map((reason) => element("p", {}, reason))));
    if (one.why.length) parts.push(element("h3", {}, "Why both sides differ"), element("ul", {}, ...one.why.map((line) => element("li", {}, line))));
    if (one.repro) parts.push(element("h3", {}, "Replay the smallest batch"), command(one.repro));
    if (one.command) parts.push(element("h3", {}, "Run this cell again"), command(one.command));
    const section = document.getElementById(`of-${encodeURIComponent(one.label)}`);
    parts.push(list);
    if (section) parts.push(element("p", {}, element("a", { href: `#${section.id}` }, `All of ${one.label}`)));
    return parts;
  }

  function command(words) {
    const button = element("button", { type: "button", "data-copy": "" }, "Copy");
    return element("div", { class: "command" }, element("pre", { tabindex: "0" }, element("code", {}, words)), button);
  }

  let opened = null;

  function open(one) {
    opened = one;
    document.getElementById("details-title").textContent = one.id;
    document.getElementById("details-body").replaceChildren(...details(one));
    const at = listed.indexOf(one);
    document.getElementById("previous").disabled = at <= 0;
    document.getElementById("next").disabled = at < 0 || at === listed.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    document.getElementById("details-title").focus();
  }

  function step(by) {
    const other = listed[listed.indexOf(opened) + by];
    if (opened && listed.includes(opened) && other) {
      history.replaceState(null, "", link(other.id));
      open(other);
    }
  }

  // Addresses

  function follow() {
    const hash = location.hash.slice(1);
    if (!hash.includes("=")) {
      if (dialog.open) dialog.close();
      const target = document.getElementById(hash);
      if (target instanceof HTMLDetailsElement) target.open = true;
      return;
    }
    const given = new URLSearchParams(hash.replaceAll("+", "%2B"));
    if (given.has("cell")) {
      const place = places.get(given.get("cell"));
      if (place === undefined) status.textContent = `No cell of this page is ${given.get("cell")}.`;
      else open(every[place]);
      return;
    }
    if (dialog.open) dialog.close();
    setFilters(given);
    filter();
    document.getElementById("cells").scrollIntoView();
  }

  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  }

  form.addEventListener("input", () => { filter(); history.replaceState(null, "", address()); });
  form.addEventListener("reset", () => setTimeout(() => { filter(); history.replaceState(null, "", "#cells"); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const first = body.childElementCount;
    show();
    body.children[first]?.querySelector("a").focus();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
    // The same address again is no change of it, and yet asked for.
    const anchor = event.target.closest("a[href^='#']");
    if (anchor && anchor.getAttribute("href") === location.hash) setTimeout(follow);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (dialog.open) {
      if (event.target.closest("pre")) return;
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    } else if (event.key === "/" && !event.target.closest("input, select")) {
      event.preventDefault();
      form.elements.text.focus();
    }
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#cell=")) history.replaceState(null, "", address());
  });
  addEventListener("hashchange", follow);

  form.hidden = false;
  document.querySelector(".cell-list").hidden = false;
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
  filter();
  follow();
})();
