"use strict";
const byId = (id) => document.getElementById(id);
const read = (id) => JSON.parse(byId(id).textContent);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const narrow = () => window.innerWidth < 600;

// Cuts a name in its middle: what follows the backbone, such as "+ aux", tells models apart.
const shorten = (name, most) => {
  const letters = [...name];
  if (letters.length <= most) return name;
  const end = Math.floor((most - 1) / 2);
  return `${letters.slice(0, most - 1 - end).join("")}…${letters.slice(-end).join("")}`;
};

/* ---- figures ---- */
const ROLES = {
  patient: "patient", network: "network", baseline: "baseline", reference: "reference", ceiling: "ceiling", warn: "warn",
  identity: "muted", ink: "ink",
};
const faded = (hex, share) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${share})`;

function painted(trace) {
  const role = trace.meta.role;
  const copy = structuredClone(trace);
  if (role === "heat") {
    [copy.zmin, copy.zmax] = [-copy.meta.most, copy.meta.most];
    copy.colorscale = [[0, color("low")], [0.5, color("middle")], [1, color("high")]];
    copy.colorbar.thickness = narrow() ? 8 : 12;
    copy.colorbar.tickfont = copy.colorbar.title.font = { color: color("ink") };
    return copy;
  }
  const paint = color(ROLES[role] ?? "ink");
  if (copy.line) copy.line.color = paint;
  if (copy.marker) copy.marker = { ...copy.marker, color: paint };
  if (copy.marker?.line) copy.marker.line = { ...copy.marker.line, color: paint };
  if (copy.error_x) copy.error_x.color = paint;
  if (copy.error_y) copy.error_y.color = paint;
  if (copy.textfont) copy.textfont.color = paint;
  if (copy.fill) copy.fillcolor = faded(paint, 0.14);
  if (copy.type === "box") copy.fillcolor = `color-mix(in srgb, ${paint} 22%, transparent)`;
  return copy;
}

function styled(layout) {
  const axis = (own) => ({
    gridcolor: color("line"), zerolinecolor: color("muted"), linecolor: color("line"), automargin: true,
    tickfont: { size: narrow() ? 11 : 13 }, ...own, title: { ...own.title, font: { size: narrow() ? 12 : 14 } },
  });
  const copy = structuredClone(layout);
  const names = copy.meta?.names;
  const annotations = (copy.annotations ?? []).map((note) => ({ ...note, font: { color: color("muted"), size: 13 } }));
  return {
    ...copy, annotations,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("ink"), size: 13, family: getComputedStyle(document.body).fontFamily },
    hoverlabel: { bgcolor: color("panel"), bordercolor: color("line"), font: { color: color("ink") } },
    margin: { l: names ? 10 : 54, r: 14, t: 40, b: 50 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("muted"), activecolor: color("accent") },
    dragmode: narrow() ? false : "zoom",
    xaxis: axis(copy.xaxis),
    ...(copy.yaxis2 && { yaxis2: axis(copy.yaxis2) }),
    yaxis: axis(names ? { ...copy.yaxis, ticktext: names.map((name) => escaped(shorten(name, narrow() ? 18 : 34))) } : copy.yaxis),
  };
}

const figures = [...document.querySelectorAll(".plot")].map((box) => ({ box, ...read(`${box.id}-data`) }));

const pickerOf = (figure) => document.querySelector(`select[data-for~="${figure.box.id}"]`);

function draw(figure) {
  const picker = pickerOf(figure);
  const data = figure.data.map((trace) => {
    const copy = painted(trace);
    if (picker && trace.meta.group !== undefined) copy.visible = trace.meta.group === picker.value;
    return copy;
  });
  const config = {
    responsive: true, displaylogo: false, displayModeBar: !narrow(), modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
  };
  figure.box.style.height = `${figure.layout.height}px`;
  return Plotly.react(figure.box, data, styled(figure.layout), config);
}

const drawAll = () => figures.forEach(draw);
figures.forEach((figure) => {
  pickerOf(figure)?.addEventListener("change", () => draw(figure));
});

/* ---- colors ---- */
const toggle = byId("theme");
function showTheme() {
  toggle.textContent = document.documentElement.dataset.theme === "dark" ? "Light colors" : "Dark colors";
  drawAll();
}
toggle.addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("stexpr-theme", next); } catch { /* not kept, then */ }
  showTheme();
});

/* ---- tables ---- */
const undefinedLast = (sign) => (a, b) => {
  const [missingA, missingB] = [a, b].map((value) => value === null || value === "");
  if (missingA || missingB) return missingA - missingB;
  return sign * (Number(a) - Number(b));
};
const digits = (value) => (value === null ? "–" : value.toFixed(3).replace(/^-(0\.000)$/, "$1"));

function settings(rows, what) {
  const paged = rows > 25;
  return {
    pageLength: 25, lengthMenu: [10, 25, 100, { label: "all", value: -1 }], autoWidth: false, order: [], deferRender: true,
    layout: {
      topStart: paged ? "pageLength" : null, topEnd: "search", bottomStart: "info", bottomEnd: paged ? "paging" : null,
    },
    paging: paged,
    language: {
      search: `Filter ${what}:`, lengthMenu: "Show _MENU_", info: paged ? "Rows _START_ to _END_ of _TOTAL_" : "Rows: _TOTAL_",
      infoEmpty: "Rows: 0", infoFiltered: "(filtered from _MAX_)", zeroRecords: `No ${what} match the filter.`,
    },
  };
}

const byNumber = { targets: "number", type: "undefined-last", orderSequence: ["desc", "asc"], searchable: false };

function modelTables($) {
  for (const table of document.querySelectorAll("table[data-rows]")) {
    $(table).DataTable({ ...settings(table.tBodies[0].rows.length, table.dataset.rows), columnDefs: [byNumber] });
  }
}

function genesTable($) {
  if (!byId("genes-data")) return;
  const { fixed, models, rows } = read("genes-data");
  const words = new Set(["gene", "predictable"]);
  const whole = new Set(["rank", "patients"]);
  const columns = [...fixed, ...models].map((name, i) => {
    const own = i < fixed.length;
    const className = own && name === "gene" ? "name" : own && words.has(name) ? "text" : "number";
    const render = (value, type) => {
      if (type !== "display" && type !== "filter") return value;
      return own && words.has(name) ? escaped(String(value)) : own && whole.has(name) ? value : digits(value);
    };
    return { title: escaped(name), className, render };
  });
  const gene = fixed.indexOf("gene");
  // A gene with maps is a button that shows them.
  columns[gene].createdCell = (cell, name) => {
    if (!window.stexprMaps?.has(name)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.title = "show its maps";
    button.addEventListener("click", () => window.stexprMaps.show(name));
    cell.replaceChildren(button);
  };
  $(byId("genes-table")).DataTable({
    ...settings(rows.length, "genes"), data: rows, columns,
    columnDefs: [{ ...byNumber, targets: columns.flatMap((column, i) => (column.className === "number" ? [i] : [])) }],
  });
}

async function tables() {
  const url = URL.createObjectURL(new Blob([read("datatables")], { type: "application/javascript" }));
  const { jQuery: $ } = await import(url);
  URL.revokeObjectURL(url);
  Object.assign($.fn.dataTable.ext.type.order, {
    "undefined-last-asc": undefinedLast(1), "undefined-last-desc": undefinedLast(-1),
  });
  modelTables($);
  genesTable($);
  document.querySelectorAll(".dt-layout-table").forEach((frame) => {
    frame.tabIndex = 0; // so that it scrolls by keyboard
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", frame.closest("[data-label]").dataset.label);
  });
}

let wasNarrow = narrow();
window.addEventListener("resize", () => {
  if (narrow() !== wasNarrow) drawAll();
  wasNarrow = narrow();
});
