"use strict";
(() => {
  const AT_ONCE = 200;
  const root = document.documentElement;

  // -- sorting: a heading is a button; numbers by data-sort, texts as they are ----------------------------------------
  const key = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  const compare = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    if (typeof one === "number") return 1;
    if (typeof other === "number") return -1;
    return one.localeCompare(other, "en", { numeric: true });
  };
  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const sign = direction === "descending" ? -1 : 1;
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort((one, other) => sign * compare(one[0], other[0]));
    body.append(...rows.map((pair) => pair[1]));
    [...table.tHead.rows[0].cells].forEach((cell, place) => {
      if (place === column) cell.setAttribute("aria-sort", direction);
      else cell.removeAttribute("aria-sort");
    });
    show(table.id);
  };
  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = cell.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const numeric = cell.classList.contains("number");
        const now = cell.getAttribute("aria-sort");
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        sort(table, column, now === first ? second : first);
      });
    });
  }

  // -- filtering, and long tables in parts ------------------------------------------------------------------------------
  const limits = {};
  function show(id) {
    const form = document.querySelector(`form[data-for="${id}"]`);
    if (!form) return;
    const fields = [...form.elements].filter((field) => field.name);
    const wanted = Object.fromEntries(fields.map((field) => [field.name, field.value]));
    const search = (wanted.text || "").toLowerCase();
    const limit = limits[id] || AT_ONCE;
    let matching = 0;
    const rows = [...document.getElementById(id).tBodies[0].rows];
    for (const row of rows) {
      const fits =
        Object.entries(wanted).every(([name, value]) => name === "text" || !value || row.dataset[name] === value) &&
        (!search || row.textContent.toLowerCase().includes(search));
      matching += fits ? 1 : 0;
      row.hidden = !fits || matching > limit;
    }
    form.querySelector("output").textContent = `${Math.min(matching, limit)} of ${matching} shown`;
    const more = document.querySelector(`button.more[data-for="${id}"]`);
    if (more) more.hidden = matching <= limit;
  }
  for (const form of document.querySelectorAll("form.filter")) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => show(form.dataset.for));
    show(form.dataset.for);
  }
  for (const more of document.querySelectorAll("button.more")) {
    more.addEventListener("click", () => {
      limits[more.dataset.for] = (limits[more.dataset.for] || AT_ONCE) + 10 * AT_ONCE;
      show(more.dataset.for);
    });
  }

  // -- light and dark ---------------------------------------------------------------------------------------------------
  const toggle = document.getElementById("theme");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // -- a view in the address: #sort=table-results,1,descending&theme=dark&text=Paris ---------------------------------------
  const asked = new URLSearchParams(location.hash.slice(1));
  if (["light", "dark"].includes(asked.get("theme"))) root.dataset.theme = asked.get("theme");
  if (asked.has("text")) {
    for (const field of document.querySelectorAll('input[name="text"]')) field.value = asked.get("text");
    for (const form of document.querySelectorAll("form.filter")) show(form.dataset.for);
  }
  if (asked.has("sort")) {
    const [id, column, direction] = asked.get("sort").split(",");
    const table = document.getElementById(id);
    if (table && table.tagName === "TABLE" && table.tHead.rows[0].cells[Number(column)])
      sort(table, Number(column), direction === "descending" ? "descending" : "ascending");
  }
  root.dataset.ready = "true";
})();
