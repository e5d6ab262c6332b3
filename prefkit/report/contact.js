"use strict";
/* Decisions on a contact sheet. The browser stores the marks, and saves them as lines for decisions.csv on demand: in a file
   or, if the sheet is live, on the server from which it came. */

const known = JSON.parse(document.getElementById("known").textContent); // {sheet, verdicts: {id: verdict}, live}
const at = (id) => document.getElementById(id);
const KEYS = { k: "keep", r: "reject", x: "remove", 0: "", backspace: "", delete: "" };
const cells = [...document.querySelectorAll(".decide")];
let marks = {}; // id -> {verdict, reason}, only if it differs from decisions.csv

const place = "prefkit-decide " + known.sheet;

function recall() {
  marks = {};
  try {
    for (const [id, mark] of Object.entries(JSON.parse(localStorage.getItem(place) || "{}"))) {
      if (["keep", "reject", "remove"].includes(mark.verdict)) marks[id] = { verdict: mark.verdict, reason: String(mark.reason) };
    }
  } catch { /* no storage */ }
  show();
}

function remember() {
  show();
  try {
    localStorage.setItem(place, JSON.stringify(marks));
  } catch {
    at("marked").textContent += "; this browser does not store them, save before you close the page";
  }
}

function show() {
  for (const cell of cells) {
    const mark = marks[cell.dataset.id];
    cell.dataset.verdict = (mark && mark.verdict) || known.verdicts[cell.dataset.id] || "";
    cell.classList.toggle("new", Boolean(mark));
    cell.querySelector(".why").textContent = mark ? `${mark.verdict}${mark.reason ? ": " + mark.reason : ""} (new)` : "";
    cell.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.mark === cell.dataset.verdict));
  }
  const n = cells.filter((c) => marks[c.dataset.id]).length; // storage also holds marks of the run's other sheets
  at("marked").textContent = `${n} new decision${n === 1 ? "" : "s"}`;
  at("save").disabled = at("clear").disabled = !n;
}

function decide(cell, verdict) {
  const id = cell.dataset.id, mark = marks[id];
  if (!verdict || (mark && mark.verdict === verdict && mark.reason === at("reason").value.trim())) delete marks[id];
  else marks[id] = { verdict, reason: at("reason").value.trim() };
  remember();
}

/** Returns the cell nearest to `cell` in the direction of an arrow key. */
function step(cell, key) {
  const i = cells.indexOf(cell);
  if (key === "arrowright") return cells[i + 1];
  if (key === "arrowleft") return cells[i - 1];
  const here = cell.getBoundingClientRect(), down = key === "arrowdown";
  const rows = (down ? cells.slice(i + 1) : cells.slice(0, i).reverse()).filter((c) => {
    const there = c.getBoundingClientRect();
    return down ? there.top >= here.bottom : there.bottom <= here.top;
  });
  if (!rows.length) return undefined;
  const top = rows[0].getBoundingClientRect().top, middle = (c) => Math.abs(c.getBoundingClientRect().left - here.left);
  return rows.filter((c) => c.getBoundingClientRect().top === top).sort((a, b) => middle(a) - middle(b))[0];
}

const field = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function save() {
  const by = at("by").value.trim();
  const lines = cells.filter((c) => marks[c.dataset.id]).map((c) => {
    const { verdict, reason } = marks[c.dataset.id];
    return [c.dataset.id, verdict, reason, by].map(field).join(",");
  });
  const text = "id,verdict,reason,by\n" + lines.join("\n") + "\n";
  if (known.live) return send(text, { ...marks });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `decisions-${known.sheet}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Sends the decisions to the server. Marks that were made while they were sent stay. */
async function send(text, sent) {
  try {
    const answer = await fetch("decisions", { method: "POST", body: text, headers: { "Content-Type": "text/csv" } });
    if (!answer.ok) throw new Error((await answer.json()).error);
  } catch (error) {
    at("marked").textContent = `not saved: ${error.message}`;
    return;
  }
  for (const id of cells.map((c) => c.dataset.id).filter((id) => sent[id])) {
    known.verdicts[id] = sent[id].verdict;
    if (marks[id] === sent[id]) delete marks[id];
  }
  remember();
  at("marked").textContent += "; the others are saved";
}

document.addEventListener("keydown", (event) => {
  const cell = event.target.closest(".decide"), key = event.key.toLowerCase();
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key in KEYS) decide(cell, KEYS[key]);
  else if (key.startsWith("arrow")) step(cell, key)?.focus();
  else return;
  event.preventDefault();
});
for (const cell of cells) {
  cell.querySelectorAll("button").forEach((b) => b.addEventListener("click", () => decide(cell, b.dataset.mark)));
}
at("save").addEventListener("click", save);
at("clear").addEventListener("click", () => {
  cells.forEach((c) => { delete marks[c.dataset.id]; });
  remember();
});
window.addEventListener("storage", (event) => { if (event.key === place) recall(); }); // decided in another tab
at("bar").hidden = false;
recall();
