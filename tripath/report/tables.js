"use strict";
// A page that a server shows by itself, as MLflow does, has no files beside it: links to them become text.
// Every table: a click on a heading sorts. Larger ones: words that rows must have, and the columns that are shown.
const FEW_ROWS = 8, FEW_COLUMNS = 7;
const SCALES = { k: 1e3, M: 1e6, G: 1e9, KiB: 1024, MiB: 1048576, GiB: 1073741824, ms: 1e-3, us: 1e-6, ns: 1e-9 };

function make(tag, parent, properties) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

function valueOf(text) {
  const found = text.replace(/,/g, "").match(/^\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*([A-Za-z]*)/);
  return found ? Number(found[1]) * (SCALES[found[2]] ?? 1) : NaN;
}

function sort(table, heads, at) {
  const ascending = heads[at].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head, number) =>
    head.setAttribute("aria-sort", number !== at ? "none" : ascending ? "ascending" : "descending"));
  const body = table.tBodies[0], sign = ascending ? 1 : -1;
  const rows = [...body.rows].map(row => [row, row.cells[at].textContent, valueOf(row.cells[at].textContent)]);
  rows.sort(([, a, x], [, b, y]) => {
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return sign * (isNaN(x) ? a.localeCompare(b) : x - y);
  });
  rows.forEach(([row]) => body.appendChild(row));
}

function filter(table, text) {
  const words = text.toLowerCase().split(/\s+/);
  for (const row of table.tBodies[0].rows)
    row.classList.toggle("off", !words.every(word => row.textContent.toLowerCase().includes(word)));
}

function show(table, at, shown) {
  for (const row of table.rows) row.cells[at].classList.toggle("off", !shown);
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], rows = table.tBodies[0].rows;
  if (rows.length < 2) continue;
  heads.forEach((head, at) => {
    if (!head.textContent) return;
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.onclick = () => sort(table, heads, at);
    head.onkeydown = event => { if (event.key === "Enter") head.onclick(); };
  });
  const extra = heads.some(head => "extra" in head.dataset);
  if (rows.length <= FEW_ROWS && !extra) continue;
  const tools = document.createElement("div");
  tools.className = "tools";
  table.parentElement.before(tools);
  const search = make("input", tools, { type: "search", placeholder: "rows with ..." });
  search.setAttribute("aria-label", "show rows with these words");
  search.oninput = () => filter(table, search.value);
  if (heads.length <= FEW_COLUMNS && !extra) continue;
  const choice = make("details", tools, {});
  make("summary", choice, { textContent: "columns" });
  heads.forEach((head, at) => {
    if (!head.textContent) return;
    const label = make("label", choice, {}), shown = !("extra" in head.dataset);
    const box = make("input", label, { type: "checkbox", checked: shown });
    label.append(" " + head.textContent);
    box.onchange = () => show(table, at, box.checked);
    if (!shown) show(table, at, false);
  });
}

if (["blob:", "about:"].includes(location.protocol))
  for (const link of document.querySelectorAll("a:not([href^='#'])")) link.replaceWith(...link.childNodes);
