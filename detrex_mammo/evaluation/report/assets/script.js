"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const CARDS_AT_ONCE = 24;

  function element(name, parent, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    if (parent) parent.append(made);
    return made;
  }

  function shape(name, parent, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  }

  const isNumber = (value) => typeof value === "number";

  // As many decimals as a column's numbers need, three at most; of what is smaller two digits.
  function decimals(values) {
    const needed = (value) => [0, 1, 2].find((digits) => Math.abs(value - value.toFixed(digits)) < 5e-5) ?? 3;
    return Math.max(0, ...values.filter(isNumber).map(needed));
  }

  function written(value, digits) {
    if (value === null) return "-";
    if (!isNumber(value)) return String(value);
    return value && digits && Math.abs(value) < 0.001 ? value.toPrecision(2) : value.toFixed(digits);
  }

  // ---- tables: a click on a column's name sorts by it, another one turns the order round

  function drawRows(body, rows, digits) {
    body.replaceChildren();
    for (const row of rows) {
      const line = element("tr", body);
      row.forEach((value, index) => {
        const isOfNumbers = digits[index] !== null && (value === null || isNumber(value));
        element("td", line, written(value, digits[index]), isOfNumbers ? "number" : "");
      });
    }
  }

  function compare(a, b) {
    if (a === b) return 0;
    if (a === null) return 1;
    if (b === null) return -1;
    if (isNumber(a) && isNumber(b)) return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function drawTable(table, parent) {
    if (table.key !== "headline") element("h3", parent, table.title);
    const scroll = element("div", parent, undefined, "scroll");
    const drawn = element("table", scroll);
    drawn.id = "table-" + table.key;
    const head = element("tr", element("thead", drawn));
    const body = element("tbody", drawn);
    const digits = table.columns.map((_, index) => {
      const values = table.rows.map((row) => row[index]);
      return values.some(isNumber) ? decimals(values) : null;
    });
    table.columns.forEach((column, index) => {
      const cell = element("th", head, undefined, digits[index] === null ? "" : "number");
      const button = element("button", cell, column);
      button.type = "button";
      button.addEventListener("click", () => {
        const up = cell.getAttribute("aria-sort") !== "ascending";
        for (const other of head.children) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.rows].sort((a, b) => {
          const order = compare(a[index], b[index]);
          return a[index] === null || b[index] === null || up ? order : -order;
        });
        drawRows(body, rows, digits);
      });
    });
    drawRows(body, table.rows, digits);
    const below = element("p", parent, table.note ? table.note + " " : "", "fine");
    const link = element("a", below, "CSV");
    link.href = "tables/" + encodeURIComponent(table.key) + ".csv";
  }

  // ---- the threshold: counts as in the FROC, and the gallery's boxes

  // How many of falling scores are at least the threshold.
  function countAtLeast(falling, threshold) {
    let low = 0, high = falling.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (falling[middle] >= threshold) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  let threshold = data.counter ? data.counter.threshold : 0;

  function drawCounts() {
    const counter = data.counter;
    const found = countAtLeast(counter.hit_scores, threshold);
    const wrong = countAtLeast(counter.false_scores, threshold);
    const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "not defined");
    const boxes = [
      [`${found} of ${counter.num_units}`, `${counter.unit} found`, "found"],
      [share(found, counter.num_units), "sensitivity", "sensitivity"],
      [String(counter.num_units - found), `${counter.unit} missed`, "missed"],
      [String(wrong), "false positives", "false"],
      [share(wrong, counter.num_images), `false positives per image, over ${counter.num_images} ${counter.images}`, "fppi"],
    ];
    const parent = byId("counts");
    parent.replaceChildren();
    for (const [value, text, key] of boxes) {
      const box = element("div", parent);
      box.dataset.count = key;
      element("strong", box, value);
      element("span", box, text);
    }
  }

  function setThreshold(value, from) {
    if (!Number.isFinite(value)) return;
    const { lowest } = data.counter;
    threshold = Math.max(lowest, value);
    if (from !== "slider") byId("slider").value = Math.round((1000 * (threshold - lowest)) / (highest - lowest || 1));
    if (from !== "score") byId("score").value = Number(threshold.toFixed(4));
    drawCounts();
    drawGallery();
  }

  let highest = 1;
  function startThreshold() {
    const counter = data.counter;
    highest = Math.max(counter.hit_scores[0] ?? 0, counter.false_scores[0] ?? 0, counter.threshold, counter.lowest + 1e-6);
    byId("threshold").hidden = false;
    byId("counts-note").textContent = counter.threshold_note;
    byId("slider").addEventListener("input", (event) => {
      const { lowest } = counter;
      setThreshold(lowest + (event.target.value / 1000) * (highest - lowest), "slider");
    });
    byId("score").addEventListener("change", (event) => setThreshold(Number(event.target.value), "score"));
    byId("reset").addEventListener("click", () => setThreshold(counter.threshold));
    setThreshold(counter.threshold);
  }

  // ---- gallery

  function putIn(image) {
    eyes.unobserve(image);
    const source = byId("picture" + image.dataset.picture);
    if (source) image.setAttribute("href", "data:image/jpeg;base64," + source.textContent);
  }

  const eyes = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) putIn(entry.target);
  }, { rootMargin: "600px" });
  window.addEventListener("beforeprint", () => document.querySelectorAll(".frame image:not([href])").forEach(putIn));

  function standing(card) {
    let worst = -1, best = -1, missed = 0, sure = Infinity;
    for (const view of card.views) {
      for (const mark of view.marks) if (mark[6] === "false" && mark[5] >= threshold) worst = Math.max(worst, mark[5]);
      for (const lesion of view.lesions) {
        if (lesion[5] !== null && lesion[5] >= threshold) best = Math.max(best, lesion[5]);
        else {
          missed += 1;
          sure = Math.min(sure, lesion[5] ?? -1);
        }
      }
    }
    return { worst, best, missed, sure };
  }

  const KINDS = {
    false: { keep: (s) => s.worst >= 0, order: (a, b) => b.worst - a.worst },
    missed: { keep: (s) => s.missed > 0, order: (a, b) => a.sure - b.sure || b.missed - a.missed },
    hit: { keep: (s) => s.best >= 0, order: (a, b) => b.best - a.best },
    all: { keep: () => true, order: () => 0 },
  };
  const chosen = {};
  let numShown = CARDS_AT_ONCE;

  function drawView(view, parent) {
    const figure = element("figure", parent, undefined, "view");
    element("figcaption", figure, view.title);
    const frame = element("div", figure, undefined, "frame");
    const [width, height] = view.size;
    const svg = shape("svg", frame, { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": view.title });
    const picture = shape("image", svg, { width, height, preserveAspectRatio: "none" });
    picture.dataset.picture = view.picture;
    eyes.observe(picture);
    return svg;
  }

  // The boxes, once all views of a card are there: texts of eleven pixels on the screen, whatever
  // the pictures are scaled by.
  function drawBoxes(view, svg) {
    const [width, height] = view.size;
    const shown = svg.getBoundingClientRect();
    const size = 11 / (Math.min(shown.width / width, shown.height / height) || 42 / height);
    const taken = [];
    const box = ([x, y, w, h], kind, label) => {
      shape("rect", svg, { x, y, width: w, height: h, class: kind });
      if (!label) return;
      // A text stays inside the picture; of texts on one another only the first is written.
      const long = 0.58 * size * label.length;
      const place = { x: Math.max(0, Math.min(x, width - long)), y: y > 1.4 * size ? y - 0.3 * size : y + h + size };
      const isOn = (other) => Math.abs(other.y - place.y) < size && place.x < other.end && other.x < place.x + long;
      if (taken.some(isOn)) return;
      taken.push({ ...place, end: place.x + long });
      shape("text", svg, { ...place, "font-size": size }).textContent = label;
    };
    for (const lesion of view.lesions) {
      const isFound = lesion[5] !== null && lesion[5] >= threshold;
      box(lesion, isFound ? "found" : "missed", isFound ? "" : lesion[4]);
    }
    for (const mark of view.marks) {
      if (mark[5] >= threshold && mark[6] !== "ignored") box(mark, mark[6], `${mark[4]} ${mark[5].toFixed(2)}`);
    }
  }

  function drawCard(card, found, parent) {
    const drawn = element("article", parent, undefined, "card");
    element("h3", drawn, card.title);
    const words = Object.entries(card.words).map(([key, value]) => `${key} ${value}`);
    const lesions = card.views.reduce((sum, view) => sum + view.lesions.length, 0);
    words.push(`${lesions} lesion${lesions === 1 ? "" : "s"}${found.missed ? `, ${found.missed} missed` : ""}`);
    element("p", drawn, words.join(", "));
    const views = element("div", drawn, undefined, "views");
    const drawnViews = card.views.map((view) => [view, drawView(view, views)]);
    for (const [view, svg] of drawnViews) drawBoxes(view, svg);
  }

  function textOf(card) {
    const parts = [card.title, ...Object.values(card.words)];
    for (const view of card.views) {
      parts.push(view.title, ...view.lesions.map((l) => l[4]), ...view.marks.map((m) => m[4]));
    }
    return parts.join(" ").toLowerCase();
  }

  function drawGallery() {
    if (!data.cards.length) return;
    const kind = KINDS[byId("kind").value];
    const wanted = byId("search").value.trim().toLowerCase();
    const kept = data.cards
      .filter((card) => Object.entries(chosen).every(([key, value]) => !value || card.words[key] === value))
      .filter((card) => !wanted || textOf(card).includes(wanted))
      .map((card) => ({ card, found: standing(card) }))
      .filter(({ found }) => kind.keep(found))
      .sort((a, b) => kind.order(a.found, b.found));
    const parent = byId("cards");
    eyes.disconnect();
    parent.replaceChildren();
    for (const { card, found } of kept.slice(0, numShown)) drawCard(card, found, parent);
    byId("shown").textContent = `${Math.min(numShown, kept.length)} of ${kept.length} shown`;
    byId("more").hidden = kept.length <= numShown;
  }

  function startGallery() {
    byId("gallery").hidden = false;
    byId("gallery-note").textContent = data.gallery_note;
    const groups = {};
    for (const card of data.cards) {
      for (const [key, value] of Object.entries(card.words)) (groups[key] ??= new Set()).add(value);
    }
    for (const [key, values] of Object.entries(groups)) {
      if (values.size < 2 || values.size > 60) continue;
      const label = document.createElement("label");
      label.append(key + " ");
      const select = element("select", label);
      select.dataset.filter = key;
      element("option", select, "all").value = "";
      for (const value of [...values].sort(compare)) element("option", select, value).value = value;
      select.addEventListener("change", () => { chosen[key] = select.value; again(); });
      byId("filters").insertBefore(label, byId("shown"));
    }
    const again = () => { numShown = CARDS_AT_ONCE; drawGallery(); };
    byId("kind").addEventListener("change", again);
    byId("search").addEventListener("input", again);
    byId("more").addEventListener("click", () => { numShown += CARDS_AT_ONCE; drawGallery(); });
  }

  // ---- start

  for (const [name, text] of data.facts) {
    element("dt", byId("facts"), name);
    element("dd", byId("facts"), text);
  }
  if (data.note) {
    byId("note").textContent = data.note;
    byId("note").hidden = false;
  }
  for (const table of data.tables) drawTable(table, byId(table.key === "headline" ? "headline" : "tables"));
  if (data.cards.length) startGallery();
  if (data.counter) startThreshold();
  else drawGallery();
  document.body.dataset.ready = "yes";
})();
