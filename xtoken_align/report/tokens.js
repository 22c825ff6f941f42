"use strict";

// The table of tokens: every row is in the page's data, one page of rows is in the document. Text enters the document
// as text nodes only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { rows, classes, reasons, weights, pieces, teacher } = data;
  const total = rows.id.length;
  const marks = new RegExp(data.marks, "gu");
  const lossy = new Set(data.lossy);
  const element = (id) => document.getElementById(id);
  const offsets = new Int32Array(total + 1);
  rows.weights.forEach((pattern, row) => { offsets[row + 1] = offsets[row] + weights[pattern].length; });
  let lowered = null; // made at the first search: opening the page should not wait for it
  let shown = Int32Array.from({ length: total }, (_, row) => row);
  let page = 0;
  let sorting = { column: null, ascending: true };

  // ---- searching

  // class:x, rule:x and id:n, each a word or in quotes; the rest is a part of the token.
  const readQuery = (query) => {
    const wanted = { class: [], rule: [], id: [], text: "", exact: false };
    const term = /(^|\s)(class|rule|id):(?:"([^"]*)"|(\S+))/giu;
    const rest = query.replace(term, (_, before, name, quoted, word) => {
      wanted[name.toLowerCase()].push((quoted ?? word).toLowerCase());
      return before;
    });
    const quoted = /^\s*"(.+)"\s*$/su.exec(rest);
    wanted.exact = quoted !== null;
    wanted.text = quoted ? quoted[1] : rest.trim().toLowerCase();
    return wanted;
  };

  const namesWith = (names, parts) => names.map((name) => parts.every((part) => name.toLowerCase().includes(part)));

  const search = (query) => {
    const wanted = readQuery(query);
    const classFits = namesWith(classes, wanted.class);
    const reasonFits = namesWith(reasons, wanted.rule);
    lowered ??= rows.surface.map((surface) => surface.toLowerCase());
    const surfaces = wanted.exact ? rows.surface : lowered;
    const found = [];
    for (let row = 0; row < total; row += 1) {
      if (classFits[rows.class[row]] && reasonFits[rows.reason[row]]
          && wanted.id.every((id) => String(rows.id[row]) === id) && surfaces[row].includes(wanted.text)) {
        found.push(row);
      }
    }
    shown = Int32Array.from(found);
  };

  // ---- sorting

  const ranks = (names) => {
    const order = [...names.keys()].sort((a, b) => (names[a] < names[b] ? -1 : 1));
    const rank = new Int32Array(names.length);
    order.forEach((name, place) => { rank[name] = place; });
    return rank;
  };
  const classRank = ranks(classes);
  const reasonRank = ranks(reasons);
  const keys = {
    id: (row) => rows.id[row],
    surface: (row) => rows.surface[row],
    class: (row) => classRank[rows.class[row]],
    reason: (row) => reasonRank[rows.reason[row]],
    count: (row) => rows.count[row],
  };

  // Equal rows keep the order of the data in both directions; without a column that order, numerals first, is all.
  const sort = () => {
    if (sorting.column === null) { shown.sort(); return; }
    const key = keys[sorting.column];
    const sign = sorting.ascending ? 1 : -1;
    shown.sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      if (left === right) return a - b;
      return left < right ? -sign : sign;
    });
  };

  // ---- drawing

  const make = (name, style, ...children) => {
    const made = document.createElement(name);
    if (style) made.className = style;
    made.append(...children);
    return made;
  };

  // A visible string with its escapes and spaces in elements of their own.
  const token = (surface) => {
    if (surface === "") return make("span", "tok none", "no text");
    // A combining mark at the start has nothing to sit on; the style sheet gives it a dotted circle.
    const made = make("bdi", /^\p{M}/u.test(surface) ? "tok mark" : "tok");
    let at = 0;
    for (const match of surface.matchAll(marks)) {
      made.append(surface.slice(at, match.index), make("span", match[0][0] === " " ? "sp" : "esc", match[0]));
      at = match.index + match[0].length;
    }
    made.append(surface.slice(at));
    return made;
  };

  const piecesOf = (row) => {
    const pattern = weights[rows.weights[row]];
    return pattern.map((weight, at) => {
      const piece = pieces[offsets[row] + at];
      const made = make("span", "piece", token(teacher.surface[piece]), make("span", "weight", String(weight)));
      made.title = `teacher id ${teacher.id[piece]}`;
      return made;
    });
  };

  const drawRow = (row) => {
    const made = make("tr", "");
    const cut = lossy.has(row) ? [" ", make("span", "lossy", "lossy")] : [];
    const links = piecesOf(row);
    made.append(
      make("td", "", String(rows.id[row])),
      make("td", "", token(rows.surface[row]), ...cut),
      make("td", "", classes[rows.class[row]]),
      make("td", "", reasons[rows.reason[row]]),
      make("td", "", rows.count[row] ? String(rows.count[row]) : "–"),
      make("td", "", ...(links.length ? links : ["–"])),
    );
    return made;
  };

  const format = new Intl.NumberFormat("en");

  const draw = () => {
    const size = Number(element("size").value);
    const pages = Math.max(1, Math.ceil(shown.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const start = page * size;
    element("body").replaceChildren(...Array.from(shown.subarray(start, start + size), drawRow));
    const end = Math.min(start + size, shown.length);
    const range = shown.length ? `, rows ${format.format(start + 1)} to ${format.format(end)}` : "";
    element("count").textContent = `${format.format(shown.length)} of ${format.format(total)} tokens${range}`;
    element("page").textContent = `page ${format.format(page + 1)} of ${format.format(pages)}`;
    element("none").hidden = shown.length > 0;
    element("window").hidden = shown.length === 0;
    for (const id of ["first", "previous"]) element(id).disabled = page === 0;
    for (const id of ["next", "last"]) element(id).disabled = page === pages - 1;
    for (const head of document.querySelectorAll(".tokens th[aria-sort]")) {
      const sorted = head.firstElementChild.dataset.column === sorting.column;
      head.ariaSort = sorted ? (sorting.ascending ? "ascending" : "descending") : "none";
    }
    for (const button of document.querySelectorAll("[data-query]")) {
      button.ariaPressed = String(button.dataset.query === element("query").value.trim());
    }
  };

  const refresh = () => {
    search(element("query").value);
    sort();
    page = 0;
    draw();
  };

  // ---- listening

  const turn = (to) => {
    page = to;
    draw();
    element("window").scrollTop = 0;
  };
  const turns = {
    first: () => turn(0), previous: () => turn(page - 1), next: () => turn(page + 1), last: () => turn(Infinity),
  };
  const turnKeys = { Home: "first", PageUp: "previous", PageDown: "next", End: "last" };

  element("query").addEventListener("input", refresh);
  element("query").form.addEventListener("submit", (event) => event.preventDefault());
  element("size").addEventListener("change", refresh);
  for (const [id, action] of Object.entries(turns)) element(id).addEventListener("click", action);
  element("window").addEventListener("keydown", (event) => {
    const name = turnKeys[event.key];
    if (name === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    turns[name]();
  });
  for (const button of document.querySelectorAll("[data-query]")) {
    button.addEventListener("click", () => {
      element("query").value = button.dataset.query;
      refresh();
    });
  }
  for (const button of document.querySelectorAll("[data-column]")) {
    button.addEventListener("click", () => {
      const column = button.dataset.column;
      // Up, down, and back to the order in which the tokens matter.
      if (sorting.column !== column) sorting = { column, ascending: true };
      else if (sorting.ascending) sorting = { column, ascending: false };
      else sorting = { column: null, ascending: true };
      sort();
      turn(0);
    });
  }

  element("explorer").hidden = false;
  draw();
})();
