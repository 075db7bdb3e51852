"use strict";
(() => {
  const table = document.querySelector("table.sortable");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // Numbers by value, words as people count them; what has no number is last both ways, equals keep their order.
  const compare = (column, sign) => (first, second) => {
    const [a, b] = [first.cells[column], second.cells[column]];
    if (!("value" in a.dataset)) return sign * words.compare(a.textContent, b.textContent);
    const [x, y] = [a.dataset.value, b.dataset.value];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (Number(x) - Number(y));
  };

  const sort = (column) => {
    const head = heads[column];
    const first = head.classList.contains("number") && column ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    body.append(...rows.slice().sort(compare(column, order === "ascending" ? 1 : -1)));
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    const unit = head.querySelector("small");
    unit?.remove();
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
    if (unit) head.append(unit);
  });
  heads[0].setAttribute("aria-sort", "ascending");

  const box = document.getElementById("filter");
  const told = document.querySelector(".filter output");
  const texts = rows.map((row) => Array.from(row.cells, (cell) => cell.textContent).join("\n").toLowerCase());
  const filter = () => {
    const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, index) => {
      row.hidden = !wanted.every((word) => texts[index].includes(word));
      count += row.hidden ? 0 : 1;
    });
    told.textContent = `${count} of ${rows.length} tensors`;
  };
  box.addEventListener("input", filter);
  filter();
  box.closest(".filter").hidden = false;
})();
