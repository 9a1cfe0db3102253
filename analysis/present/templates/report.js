// Charts: each `data-chart` names the script element with its Vega-Lite specification.
for (const place of document.querySelectorAll("[data-chart]"))
  vegaEmbed(place, JSON.parse(document.getElementById(place.dataset.chart).textContent), { renderer: "svg", actions: false });
// Tables: a click on a header sorts by it; the field above a long table hides the rows that do not contain its text.
const value = (row, n) => row.cells[n].textContent.replace("−", "-").replace(/,/g, "");
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, n) => {
    head.innerHTML = `<button>${head.innerHTML || "&nbsp;"}</button>`;
    head.onclick = () => {
      const way = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
      head.ariaSort = way > 0 ? "ascending" : "descending";
      const compare = (a, b) => parseFloat(a) - parseFloat(b) || a.localeCompare(b);
      body.append(...[...body.rows].sort((a, b) => way * compare(value(a, n), value(b, n))));
    };
  });
  if (body.rows.length < 10) continue;
  const field = Object.assign(document.createElement("input"), { type: "search", className: "filter", placeholder: "filter rows" });
  field.oninput = () => { for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(field.value.toLowerCase()); };
  table.parentElement.before(field);
}
