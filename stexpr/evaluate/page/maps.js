"use strict";
// Maps of one gene over one section, drawn from quantized values: level 255 is undefined, 0 to 254 span low to high.
(() => {
  const box = byId("maps-data");
  if (!box) return;
  const { genes, ranks, ceilings, blind, unpredictable, models, sections } = JSON.parse(box.textContent);
  const place = new Map(genes.map((name, i) => [name, i]));
  const [geneInput, modelPicker, sectionPicker] = ["map-gene", "map-model", "map-section"].map(byId);
  const [previous, next, shared, facts, spotFacts] = ["map-previous", "map-next", "map-shared", "map-facts", "map-spot"].map(byId);
  const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
  const DIVERGING = ["#8a4300", "#d9822b", "#f3c894", "#f2f2f0", "#9cc3e8", "#3f87cc", "#093f7a"];
  const EMPTY = "#8b949e55";
  const STEPS_PER_PX = 8;

  const ramp = (stops) => {
    const parsed = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    return Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (parsed.length - 1);
      const [a, b] = [parsed[Math.floor(at)], parsed[Math.ceil(at)]];
      return `rgb(${a.map((value, k) => Math.round(value + (b[k] - value) * (at % 1))).join(",")})`;
    });
  };
  const RAMPS = { value: ramp(VIRIDIS), residual: ramp(DIVERGING) };
  const GRADIENTS = { value: VIRIDIS, residual: DIVERGING };

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const positions = (text) => Float32Array.from(new Int16Array(bytes(text).buffer), (value) => value / STEPS_PER_PX);
  const opened = new Map();

  function open(section) {
    if (opened.has(section)) return opened.get(section);
    const matrix = (part) => ({ ...part, levels: bytes(part.levels) });
    const predicted = Object.fromEntries(Object.entries(section.predicted).map(([model, part]) => [model, matrix(part)]));
    const entry = { x: positions(section.x), y: positions(section.y), measured: matrix(section.measured), predicted, picture: null };
    if (section.picture) {
      entry.picture = new Image();
      entry.picture.addEventListener("load", update);
      entry.picture.src = section.picture;
    }
    opened.set(section, entry);
    return entry;
  }

  const values = (part, column, n) => {
    const [low, high] = [part.low[column], part.high[column]];
    const own = part.levels.subarray(column * n, (column + 1) * n);
    return Float32Array.from(own, (level) => (level === 255 ? NaN : low + (level / 254) * (high - low)));
  };
  const bounds = (list) => {
    const known = list.filter((value) => !Number.isNaN(value)).sort();
    const at = (share) => known[Math.round(share * (known.length - 1))] ?? 0;
    return [at(0.01), at(0.99)];
  };
  const text = (value) => (value === null || value === undefined || Number.isNaN(value) ? "undefined" : value.toFixed(2));

  function canvasOf(panel, section) {
    const canvas = byId(`map-${panel}`);
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth || 280;
    canvas.style.aspectRatio = `${section.width} / ${section.height}`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round((width * ratio * section.height) / section.width);
    const context = canvas.getContext("2d");
    const scale = canvas.width / section.width;
    context.scale(scale, scale);
    context.fillStyle = "#fff"; // maps keep their colors in both themes
    context.fillRect(0, 0, section.width, section.height);
    return { context, scale };
  }

  function spots(panel, section, entry, list, [low, high], kind) {
    const { context, scale } = canvasOf(panel, section);
    if (entry.picture?.complete) {
      context.globalAlpha = 0.4;
      context.drawImage(entry.picture, 0, 0, section.width, section.height);
      context.globalAlpha = 1;
    }
    const spacing = Math.sqrt((section.width * section.height) / section.n);
    const radius = Math.max((section.spot ?? spacing * 0.8) / 2, 1.4 / scale);
    for (let i = 0; i < list.length; i += 1) {
      const share = high > low ? (list[i] - low) / (high - low) : 0.5;
      context.fillStyle = Number.isNaN(share) ? EMPTY : RAMPS[kind][Math.round(255 * Math.min(1, Math.max(0, share)))];
      context.beginPath();
      context.arc(entry.x[i], entry.y[i], radius, 0, 2 * Math.PI);
      context.fill();
    }
    const stops = GRADIENTS[kind].join(", ");
    byId(`bar-${panel}`).style.background = `linear-gradient(to right, ${stops})`;
    byId(`ends-${panel}`).replaceChildren(...[low, high].map((value) => {
      const end = document.createElement("span");
      end.textContent = value.toFixed(2);
      return end;
    }));
  }

  function histology(section, entry) {
    const { context, scale } = canvasOf("histology", section);
    if (entry.picture?.complete) context.drawImage(entry.picture, 0, 0, section.width, section.height);
    if (!section.umPerPx) return;
    const most = section.width * section.umPerPx * 0.28;
    const length = [5000, 2000, 1000, 500, 200, 100, 50].find((um) => um <= most) ?? most;
    const [px, unit] = [length / section.umPerPx, (window.devicePixelRatio || 1) / scale];
    const label = length >= 1000 ? `${length / 1000} mm` : `${Math.round(length)} µm`;
    context.font = `${11 * unit}px system-ui, sans-serif`;
    const wide = Math.max(px, context.measureText(label).width) + 10 * unit;
    context.fillStyle = "#ffffffe6";
    context.fillRect(6 * unit, section.height - 26 * unit, wide, 21 * unit);
    context.fillStyle = "#111";
    context.fillRect(11 * unit, section.height - 10 * unit, px, 2 * unit);
    context.fillText(label, 11 * unit, section.height - 14 * unit);
  }

  let current = null;
  function blank(message) {
    current = null;
    facts.textContent = message;
    byId("map-panels").hidden = true;
  }

  function update() {
    spotFacts.textContent = "";
    const gene = place.get(geneInput.value.trim());
    previous.disabled = gene === undefined || gene === 0;
    next.disabled = gene === undefined || gene === genes.length - 1;
    if (gene === undefined) return blank(`There are no maps of ${geneInput.value.trim() || "a gene without a name"}.`);
    const section = sections[sectionPicker.selectedIndex];
    const where = `section ${section.section} (patient ${section.patient})`;
    const column = section.genes.indexOf(gene);
    if (column < 0) return blank(`${genes[gene]} is not in the panel of the fold that tested ${where}.`);
    const entry = open(section);
    const part = entry.predicted[modelPicker.selectedIndex];
    const model = models[modelPicker.selectedIndex];
    if (!part) return blank(`${model} was not tested on ${where}.`);
    byId("map-panels").hidden = false;
    byId("panel-histology").hidden = !section.picture;
    byId("map-panels").dataset.n = section.picture ? 4 : 3;
    const measured = values(entry.measured, column, section.n);
    const predicted = values(part, column, section.n);
    const residual = measured.map((value, i) => value - predicted[i]);
    let [of, by] = [bounds(measured), bounds(predicted)];
    if (shared.checked) of = by = [Math.min(of[0], by[0]), Math.max(of[1], by[1])];
    const off = bounds(residual.map(Math.abs))[1];
    if (section.picture) histology(section, entry);
    spots("measured", section, entry, measured, of, "value");
    spots("predicted", section, entry, predicted, by, "value");
    spots("residual", section, entry, residual, [-off, off], "residual");
    current = { section, entry, measured, predicted, residual };
    const limit = ceilings[gene] === null || ceilings[gene] === undefined ? [] : [
      `noise ceiling ${text(ceilings[gene])}${blind[gene] == null ? "" : ` (depth-blind ${text(blind[gene])})`}`,
    ];
    facts.textContent = [
      `${genes[gene]}${ranks[gene] ? `, rank ${ranks[gene]}` : ""}, in ${where}, by ${model}: r = ${text(part.r[column])} here`,
      ...limit,
      ...(unpredictable[gene] ? ["unpredictable: its counts are mostly noise"] : []),
    ].join("; ") + ".";
    return undefined;
  }

  function point(event) {
    if (!current) return;
    const { section, entry } = current;
    const frame = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * section.width;
    const y = ((event.clientY - frame.top) / frame.height) * section.height;
    let [best, nearest] = [Infinity, 0];
    entry.x.forEach((own, i) => {
      const distance = (own - x) ** 2 + (entry.y[i] - y) ** 2;
      if (distance < best) [best, nearest] = [distance, i];
    });
    const [a, b, c] = [current.measured, current.predicted, current.residual].map((list) => text(list[nearest]));
    spotFacts.textContent = `Spot under the pointer: measured ${a}, predicted ${b}, residual ${c}.`;
  }

  const step = (by) => {
    geneInput.value = genes[place.get(geneInput.value.trim()) + by];
    update();
  };
  const fill = (list, names) => list.append(...names.map((name) => {
    const option = document.createElement("option");
    option.value = option.textContent = name;
    return option;
  }));
  fill(byId("map-genes"), genes);
  fill(modelPicker, models);
  fill(sectionPicker, sections.map((section) => `${section.section} (patient ${section.patient})`));
  geneInput.value = genes[0] ?? "";
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  for (const control of [geneInput, modelPicker, sectionPicker, shared]) control.addEventListener("change", update);
  geneInput.addEventListener("input", () => { if (place.has(geneInput.value.trim())) update(); });
  for (const panel of ["measured", "predicted", "residual"]) byId(`map-${panel}`).addEventListener("pointermove", point);
  window.addEventListener("resize", update);
  window.stexprMaps = {
    has: (name) => place.has(name),
    show: (name) => {
      geneInput.value = name;
      update();
      byId("maps").scrollIntoView();
      geneInput.focus({ preventScroll: true });
    },
  };
  update();
})();

showTheme();
tables();
