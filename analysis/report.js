// Sorts a table by a column, and shows the rows that contain what is typed. Without it, all rows stand there.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = row => row.cells[column].textContent.trim();
      const number = row => parseFloat(text(row).replace(/[,−]/g, c => c === "−" ? "-" : ""));
      const rows = [...body.rows];
      const numeric = rows.some(row => !isNaN(number(row))) && rows.every(row => !text(row) || /^[-+≥ −\d.,]+$/.test(text(row)));
      rows.sort((a, b) => numeric
        ? (isNaN(number(a)) - isNaN(number(b))) || number(a) - number(b)
        : text(a).localeCompare(text(b), "en", { numeric: true }));
      if (down) rows.reverse();
      body.append(...rows);
    });
  });
  const field = document.querySelector(`input[data-filters="${table.id}"]`);
  if (!field) continue;
  field.closest("[hidden]").hidden = false;
  const count = document.getElementById(`${table.id}-count`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${body.rows.length} rows`;
  });
}
