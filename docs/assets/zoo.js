// Draw formulas with the copy of MathJax in this folder, on pages that have formulas.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], processEscapes: true },
  chtml: { scale: 0.9 },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
};
if (document.querySelector(".arithmatex")) {
  const script = document.createElement("script");
  script.src = new URL("mathjax/tex-chtml.js", document.currentScript.src);
  document.head.append(script);
}

// Mark tables that are too wide for a narrow screen. There, zoo.css shows each row as a list of cells, after the names
// of their columns. A line of a narrow screen holds about 55 characters, with the margins of the cells.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const rows = [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
  const longest = rows[0].map((_, i) => Math.max(...rows.flatMap((row) => row[i].split(/\s+/).map((word) => word.length))));
  const width = longest.reduce((sum, length) => sum + length + 4, 0);
  if (width <= 55 && Math.max(...rows.map((row) => row.join("").length)) <= 200) continue;
  table.dataset.wide = "";
  for (const row of table.tBodies[0]?.rows ?? []) {
    [...row.cells].forEach((cell, i) => (cell.dataset.column = rows[0][i]));
  }
}
