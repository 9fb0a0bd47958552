"use strict";
// Sort a table by the column whose heading is clicked.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const numeric = head.classList.contains("number");
    const rows = [...body.rows].sort((one, two) => {
      const a = one.cells[column].dataset.value, b = two.cells[column].dataset.value;
      // Cells without a value stay last in both directions.
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
    });
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    body.append(...rows);
  }));
}
// One CSV field. Text that a spreadsheet would run as a formula gets a leading apostrophe, as in csv_files.py.
const field = value => {
  if (typeof value === "number") return String(value);
  // Names in the figures are HTML-escaped for plotly.
  const text = value == null ? "" : String(value).replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  const safe = /^\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text;
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
};
// All points of a plot as CSV. The byte order mark makes spreadsheets read it as UTF-8.
const csv = figure => {
  const rows = [["series", "label", "x", "y", "low", "high"]];
  for (const trace of figure.data) {
    if (trace.type === "heatmap") {
      trace.z.forEach((row, y) => row.forEach((value, x) =>
        rows.push([trace.text[y][x], "", figure.layout.xaxis.ticktext[x], figure.layout.yaxis.ticktext[y], value, ""])));
      continue;
    }
    const error = trace.error_y || trace.error_x, centres = trace.error_x ? trace.x : trace.y;
    trace.x.forEach((x, index) => rows.push([trace.name + (trace.fill ? " (band)" : ""),
      trace.customdata ? trace.customdata[index] : "", x, trace.y[index],
      error ? centres[index] - error.arrayminus[index] : "", error ? centres[index] + error.array[index] : ""]));
  }
  return "\ufeff" + rows.map(row => row.map(field).join(",")).join("\r\n") + "\r\n";
};
// plotly cannot read CSS variables, so the page's colours are copied into each figure, again when the scheme changes.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const colours = () => {
  const style = getComputedStyle(document.documentElement), value = name => style.getPropertyValue(name).trim();
  const ink = value("--ink"), line = value("--line"), changes = { "font.color": ink, "font.family": "inherit" };
  for (const axis of ["xaxis", "yaxis"]) {
    changes[axis + ".gridcolor"] = line;
    changes[axis + ".zerolinecolor"] = value("--soft");
  }
  return changes;
};
for (const source of document.querySelectorAll("script[data-plot]")) {
  const plot = document.getElementById(source.dataset.plot), figure = JSON.parse(source.textContent);
  Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displayModeBar: false })
    .then(() => Plotly.relayout(plot, colours()))
    // Tests wait for this mark.
    .then(() => { plot.dataset.drawn = "yes"; });
  dark.addEventListener("change", () => Plotly.relayout(plot, colours()));
  plot.parentElement.querySelector("button").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(figure)], { type: "text/csv" }));
    link.download = source.dataset.plot.replace(/^plot-/, "") + ".csv";
    link.click();
    // Not at once: some browsers start the download only after this handler.
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
// A running study's page reloads itself while the box is checked.
const watch = document.querySelector(".watch input");
if (watch) {
  setInterval(() => { if (watch.checked) location.reload(); }, Number(watch.dataset.seconds) * 1000);
}
