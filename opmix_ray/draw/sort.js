// Sorts a table by the column whose heading is clicked: numbers by size, words by letters, rows without a value last.
document.addEventListener("click", event => {
  const button = event.target.closest("thead button");
  if (!button) return;
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const rows = [...body.rows].filter(row => !row.classList.contains("foot"));
  const numeric = rows.every(row => value(row) === "" || !isNaN(value(row)));
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
    return (up ? 1 : -1) * (numeric ? x - y : x.localeCompare(y));
  });
  const foot = [...body.rows].filter(row => row.classList.contains("foot"));
  body.append(...rows, ...foot);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
});
