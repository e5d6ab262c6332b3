"use strict";
/* A report without a network: images open in full size, and every table can be saved as CSV. */

const images = [...document.querySelectorAll(".thumb img")];
const dialog = document.createElement("dialog");
dialog.id = "zoom";
dialog.innerHTML = '<img alt=""><p></p><button autofocus>Close</button>'; // no data: the image and its text come below
document.body.append(dialog);
const [shown, words, button] = dialog.children;
let current = 0;

function show(index) {
  current = (index + images.length) % images.length;
  const image = images[current];
  shown.src = image.src;
  shown.alt = words.textContent = image.alt;
  shown.classList.toggle("tiny", image.naturalWidth < 128);
  if (!dialog.open) dialog.showModal(); // Escape closes it, and the focus returns to the image
}

images.forEach((image, index) => {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.title = "Enlarge";
  image.addEventListener("click", () => show(index));
  image.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    show(index);
  });
});
button.addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside the image
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) show(current + step);
});
dialog.addEventListener("close", () => images[current].focus());

/** Returns the text of a cell, with all digits of a number; plots and symbols are left out. */
function text(cell) {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("svg, [aria-hidden]").forEach((part) => part.remove());
  copy.querySelectorAll("br").forEach((part) => part.replaceWith(" "));
  copy.querySelectorAll("data").forEach((part) => part.replaceWith(part.value));
  const found = copy.textContent.replace(/\s+/g, " ").trim();
  return found === "–" ? "" : found;
}

const field = (word) => (/[",\r\n]/.test(word) ? `"${word.replaceAll('"', '""')}"` : word);

function csv(table) {
  const rows = [...table.rows].map((row) => [...row.cells].map(text));
  const kept = rows[0].map((_, i) => rows.some((row) => row[i])); // a column of plots is empty
  return rows.map((row) => row.filter((_, i) => kept[i]).map(field).join(",")).join("\n") + "\n";
}

document.querySelectorAll("table").forEach((table, index) => {
  const save = document.createElement("button");
  const section = table.closest("section");
  save.className = "csv";
  save.textContent = "CSV";
  save.title = "Save this table as a CSV file";
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff" + csv(table)], { type: "text/csv" })); // the mark: for Excel
    const run = document.title.split(" · ")[0].replace(/[^\w-]+/g, "-");
    link.download = `${run}-${section ? section.id : "outcome"}-${index + 1}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
  table.parentElement.after(save);
});
