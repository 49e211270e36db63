// A click on a heading (or Enter, or space) sorts its table by that column, the next one the other way round.
const UNITS = {"µs": 1e-6, "ms": 1e-3};

// The number that a cell begins with, in its base unit; null where it begins with a word.
function number(text) {
  const found = /^(-?[\d.]+(?:e[-+]?\d+)?)\s*(µs|ms)?/.exec(text);
  return found && parseFloat(found[1]) * (UNITS[found[2]] ?? 1);
}

function compare(a, b) {
  const x = number(a), y = number(b);
  if (x !== null && y !== null) return x - y;
  if (x === null && y === null) return a.localeCompare(b);
  return x === null ? 1 : -1;
}

function sort(table, heading, column) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const cell = (row) => row.cells[column].textContent;
  const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * compare(cell(a), cell(b)));
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("th").forEach((heading, column) => {
    heading.tabIndex = 0;
    heading.title = "sort";
    heading.addEventListener("click", () => sort(table, heading, column));
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // a space would scroll
      sort(table, heading, column);
    });
  });
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// The arrow keys go from cell to cell.
function move(board, event) {
  const cell = event.target.closest("[data-hover]"), step = STEPS[event.key];
  if (!cell || !step) return;
  const next = board.rows[cell.parentElement.rowIndex + step[0]]?.cells[cell.cellIndex + step[1]];
  event.preventDefault();
  if (!next?.dataset.hover) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// What a cell of a heat map says stands below it, for fingers too.
for (const board of document.querySelectorAll(".board")) {
  const reading = board.closest("figure").querySelector(".reading");
  const show = (event) => {
    const cell = event.target.closest("[data-hover]");
    if (cell) reading.textContent = cell.dataset.hover;
  };
  for (const event of ["pointerover", "click", "focusin"]) board.addEventListener(event, show);
  board.addEventListener("keydown", (event) => move(board, event));
  const first = board.querySelector(".beyond") ?? board.querySelector("[data-hover]");
  if (first) first.tabIndex = 0; // the one that the tab key reaches
}
