"use strict";

// Names come from files that nobody vouches for. They go into the page as text nodes only.

const STAGES = ["forward", "loss", "backward", "update"];
const data = JSON.parse(document.getElementById("facts").textContent);
const facts = decoded(data.facts);
const groups = facts.groups;
const parameters = facts.parameters.map((parameter, index) => ({
  ...parameter,
  index,
  rule: data.rules[data.rule[index]],
  nodes: data.nodes?.[index],
  size: parameter.shape.reduce((size, dimension) => size * dimension, 1),
}));
const parameterNamed = new Map(parameters.map((parameter) => [parameter.name, parameter]));
const bucketNamed = new Map(facts.buckets.map((bucket) => [bucket.name, bucket]));

/** Tables were written with their keys once. */
function decoded(packed) {
  const entry = (keys, row) => Object.fromEntries(keys.map((key, at) => [key, row[at]]));
  const unpacked = (value) =>
    value && value.keys && value.rows ? value.rows.map((row) => entry(value.keys, row)) : value;
  return Object.fromEntries(Object.entries(packed).map(([name, value]) => [name, unpacked(value)]));
}

// ---- Elements --------------------------------------------------------------------------------

/** An element; options are attributes, or "on" with listeners. Children may be text. */
function el(tag, options = {}, ...children) {
  return filled(document.createElement(tag), options, children);
}

function svg(tag, options = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), options, children);
}

function filled(element, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== undefined && value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

function named(name, tag = "span") {
  return el(tag, { class: "name" }, breakable(visible(name)));
}

/** Text that breaks between the parts of a name, where it has to. */
function breakable(text) {
  return text.split(/(?<=[./_:])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));
}

function badge(text, kind = "") {
  return el("span", { class: `badge ${kind}` }, text);
}

function chips(names, most = 24, chip = (name) => el("li", { class: "chip" }, visible(name))) {
  return limited(el("ul", { class: "chips" }), names, chip, most);
}

/** A list of which the rest comes when asked for. */
function limited(list, entries, made, most) {
  const more = el("button", { class: "link", type: "button" }, `${count(entries.length - most)} more`);
  const item = el("li", {}, more);
  list.append(...entries.slice(0, most).map(made));
  if (entries.length > most) {
    list.append(item);
    more.addEventListener("click", () => {
      item.replaceWith(...entries.slice(most).map(made));
    });
  }
  return list;
}

function definitions(pairs, kind = "facts") {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: kind }, shown.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

// ---- Words -----------------------------------------------------------------------------------

/** Text with the characters made visible that change the text around them, or show nothing. */
function visible(text) {
  return String(text).replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`,
  );
}

function short(text, most = 160) {
  const whole = visible(text);
  return whole.length <= most ? whole : `${whole.slice(0, most / 2)}…${whole.slice(-most / 2)}`;
}

/** A name that fits where there is little room: its last part stays, and what is before it is cut off. */
function fitted(name) {
  const text = short(name, 200);
  const last = Math.max(text.lastIndexOf("."), text.lastIndexOf("/"), text.length - 24);
  if (text.length < 10 || last <= 0) return text;
  return [el("span", { class: "cut" }, text.slice(0, last)), el("span", { class: "kept" }, text.slice(last))];
}

const count = (number) => (number === null ? "unknown" : number.toLocaleString("en-US"));

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function scaled(number, base, units) {
  let unit = 0;
  let left = number;
  while (left >= base * 0.9995 && unit < units.length - 1) {
    left /= base;
    unit += 1;
  }
  const digits = unit === 0 || left >= 100 ? 0 : left >= 10 ? 1 : 2;
  return `${left.toFixed(digits)} ${units[unit]}`;
}

function bytes(number) {
  return number === null ? "unknown" : scaled(number, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
}

function flops(number) {
  const units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"];
  return number === null ? "unknown" : scaled(number, 1000, units);
}

/** A number in six digits; what JSON has no number for is text already. */
function real(value) {
  if (typeof value !== "number") return String(value);
  return String(Number(value.toPrecision(6)));
}

function shapeText(shape) {
  if (shape === null) return "any shape";
  if (shape.length === 0) return "scalar";
  return shape.map((dimension) => (dimension === null ? "?" : short(dimension, 40))).join(" × ");
}

const yes = (value) => (value ? "yes" : "no");

/** Short words for a schedule in a cell; the whole is in the formula. */
function scheduleCell(written) {
  return el("span", { title: visible(written) }, short(written, 100).replaceAll(" .. ", "\u00a0..\u00a0"));
}

const scheduleKey = (schedule) => (typeof schedule === "number" ? schedule : schedule ? Infinity : -1);

// ---- The search ------------------------------------------------------------------------------

/** What is searched for: {words, group, op, bucket}, all in lower case. */
function parsedQuery(text) {
  const query = { words: [], fields: [] };
  for (const word of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    const field = /^(group|op|bucket):(.*)$/.exec(word);
    if (!field) query.words.push(word);
    else if (field[2]) query.fields.push([field[1], field[2]]);
  }
  query.empty = query.words.length + query.fields.length === 0;
  return query;
}

function parameterFits(parameter, query) {
  const lower = (value) => String(value ?? "none").toLowerCase();
  const own = { group: lower(parameter.group), op: lower(parameter.op_type), bucket: lower(parameter.bucket) };
  const name = lower(parameter.name);
  return (
    query.words.every((word) => name.includes(word)) &&
    query.fields.every(([field, value]) => own[field] === value)
  );
}

/** A layer fits by its own name and operators, or by one of its parameters. */
function layerFits(layer, query) {
  const name = layer.name.toLowerCase();
  const operators = Object.keys(layer.op_types).map((operator) => operator.toLowerCase());
  const itself =
    query.words.every((word) => name.includes(word)) &&
    query.fields.every(([field, value]) =>
      field === "op" ? operators.includes(value) : field === "bucket" && name === value,
    );
  return itself || layer.trained.some((parameter) => parameterFits(parameter, query));
}

const searchers = [];

function search() {
  const query = parsedQuery(byId("search").value);
  const found = searchers.map((searcher) => searcher(query));
  byId("found").textContent = query.empty ? "" : found.filter(Boolean).join(", ");
}

function searchFor(text) {
  byId("search").value = text;
  search();
}

// ---- Tables ----------------------------------------------------------------------------------

const BATCH = 100;
const MOST_AT_ONCE = 2000;

/**
 * A table that sorts, and adds rows as one scrolls to them.
 *
 * Columns are {title, cell(row), key(row)?, kind?}; details(row) fills what opens under a row.
 */
class Table {
  constructor(caption, columns, rows, { details, noun = "row" } = {}) {
    Object.assign(this, { columns, rows, details, noun, opened: new Set(), elements: new Map() });
    this.kept = rows;
    this.sorting = { column: null, descending: false };
    this.body = el("tbody");
    this.heads = columns.map((column) => this.head(column));
    const table = el(
      "table",
      { class: details ? "opens" : "", "aria-rowcount": rows.length + 1 },
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, this.heads)),
      this.body,
    );
    this.scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
    this.scroll.addEventListener("scroll", () => this.grow(), { passive: true });
    this.count = el("span");
    this.all = el("button", { class: "link", type: "button", on: { click: () => this.showAll() } });
    this.foot = el("div", { class: "foot" }, this.count, this.all);
    this.element = el("div", { class: "table" }, this.scroll, this.foot);
    if (details) this.body.addEventListener("keydown", (event) => this.move(event));
    addEventListener("beforeprint", () => this.showAll());
    this.refresh();
  }

  head(column) {
    const numeric = column.kind === "number" ? "number" : null;
    if (!column.key) return el("th", { scope: "col", class: numeric }, el("span", {}, column.title));
    const listener = { click: () => this.sort(column) };
    const button = el("button", { type: "button", on: listener }, column.title);
    return el("th", { scope: "col", class: numeric, "aria-sort": "none" }, button);
  }

  sort(column) {
    const again = this.sorting.column === column;
    const descending = again ? !this.sorting.descending : column.kind === "number";
    this.sorting = { column, descending };
    this.heads.forEach((head, at) => {
      if (!this.columns[at].key) return;
      const direction = descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", this.columns[at] === column ? direction : "none");
    });
    this.refresh();
  }

  filter(fits) {
    this.kept = this.rows.filter(fits);
    this.refresh();
    return this.kept.length;
  }

  refresh() {
    const { column, descending } = this.sorting;
    this.order = [...this.kept];
    if (column) {
      const sign = descending ? -1 : 1;
      const keys = new Map(this.order.map((row) => [row, column.key(row)]));
      this.order.sort((a, b) => sign * compared(keys.get(a), keys.get(b)));
    }
    this.shown = 0;
    this.body.replaceChildren();
    this.scroll.scrollTop = 0;
    this.more(BATCH);
  }

  grow() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroll;
    if (scrollTop + 2 * clientHeight > scrollHeight) this.more(BATCH);
  }

  showAll() {
    this.more(MOST_AT_ONCE);
  }

  more(number) {
    const next = this.order.slice(this.shown, this.shown + number);
    this.body.append(...next.flatMap((row, at) => this.line(row, this.shown + at)));
    this.shown += next.length;
    const total = this.rows.length === this.order.length ? "" : ` of ${count(this.rows.length)}`;
    this.count.textContent = `${plural(this.order.length, this.noun)}${total}`;
    const left = this.order.length - this.shown;
    this.all.hidden = left === 0;
    this.all.textContent = `Show ${count(Math.min(left, MOST_AT_ONCE))} more`;
    this.foot.hidden = left === 0 && this.rows.length < 12;
  }

  /** The row's elements: itself, and what is open under it. */
  line(row, at) {
    let element = this.elements.get(row);
    if (!element) {
      element = el("tr", { class: "row" }, this.columns.map((column, index) => this.cell(row, column, index)));
      if (this.details) {
        element.addEventListener("click", (event) => {
          const selected = String(getSelection()) !== "";
          if (event.target.closest(".toggle") || !selected) this.toggle(row);
        });
      }
      this.elements.set(row, element);
    }
    element.setAttribute("aria-rowindex", at + 2);
    return this.opened.has(row) ? [element, this.detail(row)] : [element];
  }

  cell(row, column, index) {
    const content = column.cell(row);
    if (index > 0) return el("td", { class: column.kind ?? "" }, content);
    if (!this.details) return el("th", { scope: "row" }, content);
    const toggle = el("button", { class: "toggle", type: "button", "aria-expanded": "false" }, el("span", {}, content));
    return el("th", { scope: "row" }, toggle);
  }

  detail(row) {
    const content = el("div", { class: "detail-body" }, this.details(row));
    return el("tr", { class: "detail" }, el("td", { colspan: this.columns.length }, content));
  }

  toggle(row, open = !this.opened.has(row)) {
    const element = this.elements.get(row);
    if (open === this.opened.has(row)) return;
    if (open) {
      this.opened.add(row);
      element.after(this.detail(row));
    } else {
      this.opened.delete(row);
      element.nextElementSibling.remove();
    }
    element.classList.toggle("open", open);
    element.querySelector(".toggle").setAttribute("aria-expanded", String(open));
  }

  /** Opens a row wherever it is, and goes there. */
  reveal(row) {
    const at = this.order.indexOf(row);
    if (at >= this.shown) this.more(at + BATCH - this.shown);
    this.toggle(row, true);
    const element = this.elements.get(row);
    const head = this.heads[0].offsetHeight;
    this.scroll.scrollTop = element.offsetTop - head;
    this.element.scrollIntoView({ block: "start" });
    element.querySelector(".toggle").focus({ preventScroll: true });
  }

  /** Arrow keys go from row to row. */
  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const element = event.target.closest("tr.row");
    if (!step || !element) return;
    const rows = [...this.body.querySelectorAll(":scope > tr.row")];
    const next = rows[rows.indexOf(element) + step];
    if (!next) return;
    event.preventDefault();
    next.querySelector(".toggle").focus();
  }
}

const collator = new Intl.Collator("en", { numeric: true });

function compared(a, b) {
  if (typeof a === "string" || typeof b === "string") return collator.compare(String(a), String(b));
  return (a ?? -1) - (b ?? -1);
}

// ---- Overview and hazards --------------------------------------------------------------------

function showOverview() {
  const { model, memory, stages } = facts;
  const file = model.name.split(/[\\/]/).pop() || model.name;
  document.title = `${short(file, 80)} – inspection`;
  byId("name").textContent = short(file, 400);
  const line = [visible(model.kind), plural(model.nodes, "node"), bytes(model.bytes)];
  if (model.producer) line.push(`made by ${short(model.producer)}`);
  if (file !== model.name) line.push(short(model.name, 400));
  const known = stages.filter((stage) => stage.flops !== null);
  const work = known.length ? known.reduce((sum, stage) => sum + stage.flops, 0) : null;
  const elements = parameters.reduce((sum, parameter) => sum + parameter.size, 0);
  const parts = [memory.parameters, memory.frozen, memory.gradients, memory.states, memory.activations];
  const needed = parts.reduce((sum, part) => sum + (part ?? 0), 0);
  const tiles = [
    ["Parameters", count(elements), `in ${plural(parameters.length, "tensor")}`],
    ["Groups", count(groups.length), facts.layout ? `layout: ${visible(facts.layout)}` : ""],
    ["States", bytes(memory.states), [...new Set(parameters.flatMap((p) => p.states))].map(words).join(", ")],
    ["Memory of a step", bytes(needed), memory.activations === null ? "without activations" : assumed()],
    ["Work of a step", flops(work), stages.some((stage) => stage.unknown) ? "what is known of it" : assumed()],
  ];
  byId("overview").append(
    el("p", { class: "line" }, line.map((part) => el("span", {}, part))),
    el("dl", { class: "tiles" }, tiles.map(([term, value, note]) =>
      el("div", {}, el("dt", {}, term), el("dd", {}, value, el("small", {}, note))))),
  );
}

const words = (name) => visible(name).replaceAll("_", " ");

/** The sizes that were assumed for open dimensions. */
function assumed() {
  const sizes = Object.entries(facts.memory.sizes);
  return sizes.length ? `with ${sizes.map(([name, size]) => `${short(name, 40)} = ${size}`).join(", ")}` : "";
}

function showHazards() {
  if (!facts.hazards.length) {
    byId("hazards").append(el("p", { class: "card fine" }, badge("✓ fine", "good"), "No hazards were found."));
    return;
  }
  byId("hazards").append(limited(el("ul"), facts.hazards, hazard, 12));
}

function hazard(entry) {
  return el(
    "li",
    { class: `card hazard ${entry.level}` },
    el("div", { class: "head" }, badge(entry.level, entry.level), el("h3", {}, words(entry.kind.replaceAll("-", " ")))),
    el("p", { class: "why" }, visible(entry.why)),
    el("p", { class: "fix" }, el("b", {}, "What to do: "), visible(entry.fix)),
    entry.where.length ? chips(entry.where, 8, (name) => el("li", {}, parameterChip(name))) : null,
  );
}

/** A name that opens its row, if it is a parameter. */
function parameterChip(name, kind = "", written = short(name)) {
  const parameter = parameterNamed.get(name);
  if (!parameter) return el("span", { class: `chip ${kind}` }, written);
  const listener = { click: () => openParameter(parameter) };
  const title = typeof written === "string" ? null : short(name, 400);
  return el("button", { class: `chip ${kind}`, type: "button", title, on: listener }, written);
}

// ---- Optimizer -------------------------------------------------------------------------------

const HYPERPARAMETERS = [
  ["decay", "decay"],
  ["momentum", "momentum"],
  ["epsilon", "epsilon"],
  ["centered", "centered"],
  ["loss scale", "loss_scale"],
  ["epsilon inside the root", "epsilon_inside_root"],
  ["initial mean square", "initial_mean_square"],
  ["learning rate inside the moment", "learning_rate_inside_moment"],
  ["decoupled weight decay", "decoupled_weight_decay"],
  ["Nesterov", "nesterov"],
  ["group mask", "group_mask"],
  ["guarded", "guarded"],
  ["use locking", "use_locking"],
  ["learning rates for", "steps"],
];

const SOURCES = {
  "metadata and graph": "Read in the metadata and in the nodes, which agree.",
  metadata: "Read in the metadata; the nodes do not say it.",
  graph: "Read off the nodes; the metadata does not say it.",
  none: "Neither the metadata nor the nodes say it.",
};

function showOptimizer() {
  const optimizer = facts.optimizer;
  if (!optimizer) {
    byId("optimizer").append(el("p", { class: "card muted" }, "This file has no optimizer: nothing in it updates parameters."));
    return;
  }
  byId("optimizer").querySelector("h2").append(` `, el("small", {}, `${short(optimizer.name)}. ${SOURCES[optimizer.source] ?? ""}`));
  const own = HYPERPARAMETERS.map(([term, key]) => [term, hyperparameter(key, optimizer[key])]);
  const others = Object.entries(optimizer.others).map(([name, value]) => [short(name), real(value)]);
  const lines = optimizer.formula.map((line) => [line, ""]);
  byId("optimizer").append(
    el(
      "div",
      { class: "card pair" },
      definitions([...own, ...others]),
      lines.length ? el("div", {}, el("h4", {}, "Update of a parameter"), formula(lines)) : null,
    ),
  );
}

function hyperparameter(key, value) {
  if (value === null || value === undefined) return null;
  if (key === "steps") return plural(value, "step");
  return typeof value === "boolean" ? yes(value) : real(value);
}

const LONG_EXPRESSION = 50;

function formula(lines) {
  return el(
    "div",
    { class: "formula" },
    lines.map(([expression, note]) => {
      const long = expression.length > LONG_EXPRESSION ? "long" : "";
      return [
        el("span", { class: `expression ${long}` }, visible(expression)),
        el("span", { class: `note ${long}` }, visible(note)),
      ];
    }),
  );
}

// ---- Groups and their learning rates ---------------------------------------------------------

function showGroups() {
  if (!groups.length) return hide("groups");
  byId("groups").append(limited(el("ul", { class: "cards" }), groups, groupCard, 12));
}

function groupCard(group) {
  const index = groups.indexOf(group);
  const [rate, decay] = data.groups[index];
  const listener = {
    click: () => {
      searchFor(`group:${index}`);
      byId("parameters").scrollIntoView();
    },
  };
  return el(
    "li",
    { class: "card group" },
    el(
      "div",
      { class: "head" },
      el("h3", {}, `Group ${index}`),
      el("button", { class: "link", type: "button", on: listener }, plural(group.parameters.length, "parameter")),
    ),
    definitions([
      ["Learning rate", visible(rate)],
      ["Weight decay", visible(decay)],
      ["Centralization", group.grad_centralization ? "of convolution weights" : "no"],
    ]),
    chart(group.curve, `Learning rate of group ${index}`),
  );
}

const CHART = { width: 380, height: 150, left: 52, right: 12, top: 10, bottom: 24 };

function chart(points, label) {
  const curve = points.filter(([step, value]) => Number.isFinite(step) && Number.isFinite(value));
  if (!curve.length) return el("p", { class: "empty" }, "Its learning rate is not computed from the step.");
  const values = curve.map(([, value]) => value);
  const [least, most] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const logarithmic = most > 0 && most / values.reduce((a, b) => (b > 0 ? Math.min(a, b) : a), most) >= 20;
  const said = el("output", { "aria-live": "polite" });
  const toggle = el("button", { class: "small-button", type: "button", "aria-pressed": "false", hidden: !logarithmic }, "log");
  const holder = el("div");
  const range = least === most ? real(least) : `${real(least)} to ${real(most)}`;
  const rest = curve.length === 1 ? `${real(least)} at every step` : `${range}, steps ${count(curve[0][0])} to ${count(curve.at(-1)[0])}`;
  const draw = (log) => holder.replaceChildren(plot(curve, log, `${label}: ${rest}`, (text) => (said.textContent = text ?? rest)));
  toggle.addEventListener("click", () => {
    const log = toggle.getAttribute("aria-pressed") === "false";
    toggle.setAttribute("aria-pressed", String(log));
    draw(log);
  });
  said.textContent = rest;
  draw(false);
  return el("figure", { class: "chart" }, el("div", { class: "head" }, said, toggle), holder);
}

/** The drawing; a curve of one point is a line for all steps. */
function plot(curve, log, label, say) {
  const { width, height, left, right, top, bottom } = CHART;
  const points = log ? curve.filter(([, value]) => value > 0) : curve;
  const constant = curve.length === 1;
  const steps = constant ? [0, 1] : [points[0][0], Math.max(points.at(-1)[0], points[0][0] + 1)];
  const ticks = log ? decades(points) : niceTicks(points);
  const level = log ? Math.log10 : (value) => value;
  const [low, high] = [level(ticks[0]), level(ticks.at(-1))];
  const x = (step) => left + ((step - steps[0]) / (steps[1] - steps[0])) * (width - left - right);
  const y = (value) => height - bottom - ((level(value) - low) / (high - low || 1)) * (height - top - bottom);
  const ends = constant ? steps.map((step) => [step, points[0][1]]) : points;
  const path = ends.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const dot = svg("circle", { class: "dot", r: 4, visibility: "hidden" });
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, tabindex: constant ? undefined : 0 },
    ticks.map((tick) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 7, y: y(tick) + 3.5, "text-anchor": "end" }, real(tick)),
    ]),
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    stepTicks(constant, steps).map(([text, step, anchor]) => svg("text", { x: x(step), y: height - 8, "text-anchor": anchor }, text)),
    svg("path", { class: "curve", d: path }),
    cursor,
    dot,
  );
  if (!constant) followed(drawing, points, x, y, cursor, dot, say);
  return drawing;
}

/** The value under the pointer, or where the arrow keys have gone. */
function followed(drawing, points, x, y, cursor, dot, say) {
  let at = -1;
  const show = (index) => {
    at = index;
    const hidden = index < 0 ? "hidden" : "visible";
    cursor.setAttribute("visibility", hidden);
    dot.setAttribute("visibility", hidden);
    if (index < 0) return say(null);
    const [step, value] = points[index];
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    dot.setAttribute("cx", x(step));
    dot.setAttribute("cy", y(value));
    say(`step ${count(step)}: ${real(value)}`);
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const here = ((event.clientX - box.left) / box.width) * CHART.width;
    let nearest = 0;
    points.forEach(([step], index) => {
      if (Math.abs(x(step) - here) < Math.abs(x(points[nearest][0]) - here)) nearest = index;
    });
    show(nearest);
  });
  drawing.addEventListener("pointerleave", () => show(-1));
  drawing.addEventListener("blur", () => show(-1));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), points.length - 1));
  });
}

/** Steps of 1, 2 or 5 times a power of ten, about four of them. */
function niceStep(span) {
  const power = 10 ** Math.floor(Math.log10(span / 4));
  return power * [1, 2, 5, 10].find((factor) => span / (factor * power) <= 4.5);
}

function niceTicks(points) {
  const values = points.map(([, value]) => value);
  const most = values.reduce((a, b) => Math.max(a, b), 0);
  const least = values.reduce((a, b) => Math.min(a, b), 0);
  const step = niceStep(most - least || 1);
  const first = Math.floor(least / step + 1e-9);
  const last = Math.max(Math.ceil(most / step - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
}

function decades(points) {
  const levels = points.map(([, value]) => Math.log10(value));
  const first = Math.floor(levels.reduce((a, b) => Math.min(a, b)) + 1e-9);
  const last = Math.max(Math.ceil(levels.reduce((a, b) => Math.max(a, b)) - 1e-9), first + 1);
  const every = Math.ceil((last - first) / 5);
  return Array.from({ length: Math.ceil((last - first) / every) + 1 }, (_, at) => 10 ** (first + at * every));
}

function stepTicks(constant, [first, last]) {
  if (constant) return [["every step", 0.5, "middle"]];
  const step = Math.max(1, niceStep(last - first));
  const ticks = [];
  for (let tick = Math.ceil(first / step) * step; tick <= last; tick += step) ticks.push(tick);
  return ticks.map((tick) => [count(tick), tick, tick > last - step / 3 ? "end" : "middle"]);
}

// ---- Parameters ------------------------------------------------------------------------------

let parameterTable = null;

function showParameters() {
  if (!parameters.length) {
    byId("parameters").append(el("p", { class: "card muted" }, "No parameters were found."));
    return;
  }
  const total = parameters.reduce((sum, parameter) => sum + parameter.bytes, 0) || 1;
  const most = parameters.reduce((largest, parameter) => Math.max(largest, parameter.bytes), 1);
  const columns = [
    { title: "Name", key: (p) => p.name, cell: (p) => breakable(short(p.name)) },
    { title: "Shape", key: (p) => p.shape.length * 1e18 + p.size, cell: (p) => shapeText(p.shape), kind: "nowrap" },
    { title: "Size", key: (p) => p.size, cell: (p) => count(p.size), kind: "number" },
    { title: "Operator", key: (p) => p.op_type ?? "", cell: (p) => short(p.op_type ?? "–", 40), kind: "nowrap" },
    { title: "Group", key: (p) => p.group, cell: (p) => p.group ?? "–", kind: "number" },
    { title: "Learning rate", key: (p) => scheduleKey(p.learning_rate), cell: (p) => scheduleCell(p.rule.learning_rate), kind: "schedule" },
    { title: "Weight decay", key: (p) => scheduleKey(p.weight_decay), cell: (p) => scheduleCell(p.rule.weight_decay), kind: "schedule" },
    { title: "Centralized", key: (p) => Number(p.grad_centralization), cell: (p) => yes(p.grad_centralization) },
    { title: "States", key: (p) => p.states.join(" "), cell: (p) => p.states.map((state) => words(state).replace("mean ", "")).join(", ") || "–", kind: "nowrap" },
    { title: "Bytes", key: (p) => p.bytes, cell: (p) => bytes(p.bytes), kind: "number" },
    { title: "Share", key: (p) => p.bytes, cell: (p) => share(p.bytes / total, p.bytes / most), kind: "number" },
  ];
  parameterTable = new Table("Parameters", columns, parameters, { details: parameterDetails, noun: "parameter" });
  byId("parameters").append(parameterTable.element);
  searchers.push((query) => {
    const found = parameterTable.filter((parameter) => parameterFits(parameter, query));
    return plural(found, "parameter");
  });
}

function share(part, width) {
  const bar = el("i");
  bar.style.width = `${(100 * width).toFixed(1)}%`;
  const percent = part > 0 && part < 0.001 ? "< 0.1" : (100 * part).toFixed(1);
  return [el("span", { class: "share", "aria-hidden": "true" }, bar), `${percent} %`];
}

function openParameter(parameter) {
  if (!parameterTable.kept.includes(parameter)) searchFor("");
  parameterTable.reveal(parameter);
}

function parameterDetails(parameter) {
  const bucket = bucketNamed.get(parameter.bucket);
  const lines = parameter.rule.lines;
  return [
    el(
      "div",
      {},
      el("h4", {}, "Its update"),
      lines.length ? formula(lines) : el("p", { class: "muted" }, "This file has no update for it."),
    ),
    el("div", { class: "stack" }, parameterFacts(parameter), bucket ? bucketmates(parameter, bucket) : null),
    el("div", { class: "wide stack" }, readers(parameter), bucket ? bucketNodes(parameter, bucket) : null),
  ];
}

function parameterFacts(parameter) {
  const gradient = parameter.gradient === null ? null : named(parameter.gradient);
  return definitions([
    ["Name", named(parameter.name)],
    ["Gradient", gradient],
    ["Made by", parameter.nodes?.made ? named(parameter.nodes.made, "code") : null],
    ["Learning rate", visible(parameter.rule.learning_rate)],
    ["Weight decay", visible(parameter.rule.weight_decay)],
    ["Type", visible(parameter.dtype)],
    ["States", parameter.states.map(words).join(", ")],
    ["Memory", `${bytes(parameter.bytes)} and ${bytes(parameter.state_bytes)} of states`],
  ]);
}

function bucketmates(parameter, bucket) {
  const at = bucket.parameters.indexOf(parameter.name);
  const first = Math.max(0, at - 5);
  const near = bucket.parameters.slice(first, first + 12);
  const left = bucket.parameters.length - near.length;
  const title = [`Bucket `, named(bucket.name), `, ${shapeText(bucket.shape)}: ${at + 1} of ${plural(bucket.parameters.length, "parameter")}`];
  const rest = el("button", { class: "link", type: "button", on: { click: () => searchFor(`bucket:${bucket.name}`) } }, `${count(left)} more`);
  return el(
    "div",
    {},
    el("h4", {}, title),
    bucket.function ? el("p", { class: "line" }, "Function ", named(bucket.function)) : null,
    el(
      "ul",
      { class: "chips" },
      near.map((name) => el("li", {}, parameterChip(name, name === parameter.name ? "here" : ""))),
      left && !/\s/.test(bucket.name) ? el("li", {}, rest) : null,
    ),
  );
}

function readers(parameter) {
  if (!parameter.nodes?.read.length) return null;
  const nodes = parameter.nodes.read.map((node) => el("li", {}, visible(node)));
  return el("div", {}, el("h4", {}, "Read by"), el("ul", { class: "nodes" }, nodes));
}

/** The nodes of the update; those that name the parameter stand out. */
function bucketNodes(parameter, bucket) {
  if (!bucket.nodes.length) return null;
  const tensors = [parameter.name, parameter.gradient].filter(Boolean);
  const made = (node) => el("li", { class: tensors.some((tensor) => names(node, tensor)) ? "own" : "" }, short(node, 2000));
  const list = el("ul", { class: "nodes", tabindex: 0, role: "region", "aria-label": "Nodes of the update" });
  const own = bucket.nodes.filter((node) => tensors.some((tensor) => names(node, tensor)));
  const few = bucket.nodes.length <= 60 ? bucket.nodes : [...new Set([...own, ...bucket.nodes])];
  const note = few === bucket.nodes ? "in order" : "those that name it first";
  return el("div", {}, el("h4", {}, `Its nodes: ${count(bucket.nodes.length)}, ${note}`), limited(list, few, made, 60));
}

/** Whether a node's text has this tensor as a whole name. */
function names(node, tensor) {
  for (let at = node.indexOf(tensor); at >= 0; at = node.indexOf(tensor, at + 1)) {
    const [before, after] = [node[at - 1] ?? " ", node[at + tensor.length] ?? " "];
    if (/[\s(",]/.test(before) && /[\s)",]/.test(after)) return true;
  }
  return false;
}

// ---- The graph -------------------------------------------------------------------------------

const layers = facts.layers.map((layer) => {
  const own = bucketNamed.get(layer.name);
  const trained = layer.stage === "update" && own ? own.parameters : layer.parameters;
  return { ...layer, trained: trained.map((name) => parameterNamed.get(name)).filter(Boolean) };
});
const lanes = new Map();
const GAP = 18;
const MOST_TRACKS = 10;
const TRACK = 8;
const PRINTED = 1000;

function showGraph() {
  if (!layers.length) return hide("graph");
  const holder = el("div", { class: "lanes" });
  const present = STAGES.filter((stage) => layers.some((layer) => layer.stage === stage));
  holder.style.setProperty("--lanes", present.length);
  for (const stage of present) {
    const lane = new Lane(stage, layers.filter((layer) => layer.stage === stage));
    lanes.set(stage, lane);
    holder.append(lane.element);
  }
  const chosen = el("div", { id: "chosen", "aria-live": "polite" });
  byId("graph").append(holder, chosen);
  byId("graph").querySelector("h2").append(el("small", {}, "Choose a layer to see the same in the other stages."));
  for (const lane of lanes.values()) lane.arrange();
  searchers.push((query) => {
    holder.classList.toggle("searching", !query.empty);
    const found = [...lanes.values()].reduce((sum, lane) => sum + lane.search(query), 0);
    return plural(found, "layer");
  });
}

/** Layers from top to bottom, of which only those in sight are in the page. */
class Lane {
  constructor(stage, own) {
    Object.assign(this, { stage, layers: own, boxes: new Map(), found: new Set(), related: new Set() });
    this.chosen = null;
    this.current = 0;
    this.list = el("ol", { "aria-label": `Layers of ${stage}` });
    this.drawing = svg("svg", { "aria-hidden": "true" });
    this.list.append(this.drawing);
    this.scroll = el("div", { class: "lane-scroll", tabindex: -1 }, this.list);
    const cost = facts.stages.find((entry) => entry.stage === stage);
    const work = cost && cost.flops !== null ? `, ${flops(cost.flops)}` : "";
    const note = el("small", {}, `${plural(own.length, "layer")}${work}`);
    this.element = el("div", { class: `lane ${stage}` }, el("h3", {}, stage, note), this.scroll);
    this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    this.list.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.draw()).observe(this.scroll);
    addEventListener("beforeprint", () => this.draw(PRINTED));
    this.connect();
  }

  /** Who reads whose results; those that skip a layer go along a track on the left. */
  connect() {
    const at = new Map(this.layers.map((layer, index) => [layer.name, index]));
    this.edges = [];
    const span = new Map();
    this.layers.forEach((layer, to) => {
      for (const name of layer.after) {
        const from = at.get(name);
        if (from === undefined || from === to) continue;
        const edge = { from, to, next: to === from + 1, track: 0 };
        this.edges.push(edge);
        if (edge.next) continue;
        const [first, last] = span.get(from) ?? [from, from];
        span.set(from, [Math.min(first, to), Math.max(last, to)]);
      }
    });
    const tracks = new Map();
    const ends = [];
    for (const [from, [first, last]] of [...span].sort(([, a], [, b]) => a[0] - b[0])) {
      let track = ends.findIndex((end) => end < first);
      if (track < 0) track = ends.length < MOST_TRACKS ? ends.length : MOST_TRACKS - 1;
      ends[track] = Math.max(ends[track] ?? 0, last);
      tracks.set(from, track);
    }
    for (const edge of this.edges) edge.track = tracks.get(edge.from) ?? 0;
    this.gutter = ends.length ? 12 + ends.length * TRACK : 8;
  }

  arrange() {
    this.tops = [];
    let top = 10;
    for (const layer of this.layers) {
      this.tops.push(top);
      top += this.height(layer) + GAP;
    }
    this.tops.push(top);
    this.list.style.height = `${top}px`;
    this.list.style.setProperty("--gutter", `${this.gutter}px`);
    this.draw();
  }

  height(layer) {
    return layer.trained.length ? 74 : 50;
  }

  /** The index of the layer at a height. */
  index(height) {
    let [low, high] = [0, this.layers.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.tops[middle] <= height) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  draw(height = this.scroll.clientHeight) {
    if (!this.tops) return;
    const { scrollTop } = this.scroll;
    const first = Math.max(0, this.index(scrollTop) - 4);
    const last = Math.min(this.layers.length - 1, this.index(scrollTop + height) + 4);
    for (const [index, box] of this.boxes) {
      if ((index < first || index > last) && !box.contains(document.activeElement)) {
        box.remove();
        this.boxes.delete(index);
      }
    }
    let next = null;
    for (let index = last; index >= first; index -= 1) {
      if (!this.boxes.has(index)) {
        const box = this.box(index);
        this.boxes.set(index, box);
        this.list.insertBefore(box, next);
      }
      next = this.boxes.get(index);
    }
    this.mark();
    this.drawEdges(first, last);
  }

  box(index) {
    const layer = this.layers[index];
    const operators = Object.entries(layer.op_types).sort(([, a], [, b]) => b - a);
    const main = operators.slice(0, 3).map(([name, times]) => (times > 1 ? `${times} ${short(name, 40)}` : short(name, 40)));
    const rest = operators.length > 3 ? ` +${operators.length - 3}` : "";
    const pick = el(
      "button",
      { class: "pick", type: "button", title: short(layer.name, 400), on: { click: () => choose(this, index) } },
      el("span", { class: "title" }, fitted(layer.name)),
      el("span", { class: "what" }, `${main.join(" · ")}${rest}`, layer.nodes > 1 ? ` (${plural(layer.nodes, "node")})` : ""),
    );
    const few = layer.trained.slice(0, 2);
    const more = layer.trained.length - few.length;
    const trained = few.map((parameter) => parameterChip(parameter.name, "", fitted(parameter.name)));
    const row = layer.trained.length ? el("div", { class: "chips" }, trained, more ? el("span", { class: "more" }, `+${count(more)}`) : null) : null;
    const item = el("li", { "aria-setsize": this.layers.length, "aria-posinset": index + 1 }, el("div", { class: "box" }, pick, row));
    item.style.top = `${this.tops[index]}px`;
    item.style.height = `${this.height(layer)}px`;
    return item;
  }

  /** Shows on the boxes what is chosen, related, found, and which one the Tab key reaches. */
  mark() {
    for (const [index, item] of this.boxes) {
      const classes = item.firstChild.classList;
      classes.toggle("chosen", this.chosen === index);
      classes.toggle("related", this.chosen !== index && this.related.has(index));
      classes.toggle("found", this.found.has(index));
      item.querySelector(".pick").setAttribute("aria-pressed", String(this.chosen === index));
      for (const button of item.querySelectorAll("button")) button.tabIndex = this.current === index ? 0 : -1;
    }
  }

  drawEdges(first, last) {
    const [top, bottom] = [this.tops[first], this.tops[last + 1]];
    const paths = [];
    const tips = [];
    for (const edge of this.edges) {
      if (Math.max(edge.from, edge.to) < first || Math.min(edge.from, edge.to) > last) continue;
      const active = this.chosen === edge.from || this.chosen === edge.to ? " active" : "";
      const [line, tip] = this.edge(edge, top, bottom);
      (active ? tips : paths).push(svg("path", { class: active.trim(), d: line }), svg("path", { class: `tip${active}`, d: tip }));
    }
    this.drawing.setAttribute("height", bottom - top);
    this.drawing.style.top = `${top}px`;
    this.drawing.style.height = `${bottom - top}px`;
    this.drawing.replaceChildren(...paths, ...tips);
  }

  /** The line and its tip, in a drawing that begins at top; what is out of sight is cut off. */
  edge({ from, to, next, track }, top, bottom) {
    const left = this.gutter + 6.4;
    const middle = (index) => this.tops[index] + 18 - top;
    if (next) {
      const x = left + 18;
      const [start, end] = [this.tops[from] + this.height(this.layers[from]) - top, this.tops[to] - top];
      return [`M${x} ${start}V${end - 5}`, `M${x} ${end}l-4 -6h8z`];
    }
    const sign = to > from ? 1 : -1;
    const clipped = (y) => Math.min(Math.max(y, -40), bottom - top + 40);
    const [start, end] = [clipped(middle(from) + 6), clipped(middle(to))];
    const x = this.gutter - 4 - track * TRACK;
    const turn = 5 * sign;
    return [
      `M${left} ${start}H${x + 5}Q${x} ${start} ${x} ${start + turn}V${end - turn}Q${x} ${end} ${x + 5} ${end}H${left - 5}`,
      `M${left} ${end}l-6 -4v8z`,
    ];
  }

  search(query) {
    this.found = new Set();
    this.layers.forEach((layer, index) => {
      if (!query.empty && layerFits(layer, query)) this.found.add(index);
    });
    if (this.found.size && ![...this.boxes.keys()].some((index) => this.inSight(index) && this.found.has(index))) {
      this.goTo(this.found.values().next().value);
    }
    this.draw();
    return this.found.size;
  }

  inSight(index) {
    const { scrollTop, clientHeight } = this.scroll;
    return this.tops[index] >= scrollTop && this.tops[index + 1] <= scrollTop + clientHeight;
  }

  /** Scrolls the lane, not the page. */
  goTo(index) {
    if (!this.inSight(index)) this.scroll.scrollTop = this.tops[index] - this.scroll.clientHeight / 3;
    this.draw();
  }

  select(index, related) {
    this.chosen = index;
    this.related = related;
    if (index !== null) this.current = index;
    this.draw();
  }

  /** Arrow keys go from layer to layer. */
  move(event) {
    const end = this.layers.length - 1;
    const steps = { ArrowDown: this.current + 1, ArrowUp: this.current - 1, Home: 0, End: end };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.current = Math.min(Math.max(steps[event.key], 0), end);
    this.goTo(this.current);
    this.boxes.get(this.current).querySelector(".pick").focus({ preventScroll: true });
    this.draw();
  }
}

/** The same layer: by its name, or in the update by its parameters. */
function sameLayer(one, other) {
  if (one.name === other.name) return true;
  if (one.stage !== "update" && other.stage !== "update") return false;
  return one.trained.some((parameter) => other.trained.includes(parameter));
}

function choose(lane, index) {
  const again = lane.chosen === index;
  const layer = lane.layers[index];
  for (const other of lanes.values()) {
    const related = new Set();
    other.layers.forEach((candidate, at) => {
      if (!again && other !== lane && sameLayer(layer, candidate)) related.add(at);
    });
    other.select(other === lane && !again ? index : null, related);
    if (related.size && ![...related].some((at) => other.inSight(at))) other.goTo(related.values().next().value);
  }
  byId("chosen").replaceChildren(...(again ? [] : [layerCard(layer)]));
}

function layerCard(layer) {
  const operators = Object.entries(layer.op_types).sort(([, a], [, b]) => b - a);
  const shown = operators.map(([name, times]) => (times > 1 ? `${name} × ${times}` : name));
  const before = lanes.get(layer.stage).layers.filter((other) => other.after.includes(layer.name));
  const part = (title, content) => el("div", {}, el("h4", {}, title), content);
  return el(
    "div",
    { class: "card" },
    el("div", { class: "head" }, badge(layer.stage), el("h3", {}, named(short(layer.name, 1000))), el("span", { class: "muted" }, plural(layer.nodes, "node"))),
    el(
      "div",
      { class: "parts" },
      part("Operators", chips(shown)),
      layer.trained.length
        ? part("Parameters", chips(layer.trained.map((parameter) => parameter.name), 12, (name) => el("li", {}, parameterChip(name))))
        : null,
      layer.after.length ? part("Reads from", chips(layer.after, 8)) : null,
      before.length ? part("Read by", chips(before.map((other) => other.name), 8)) : null,
    ),
  );
}

// ---- Memory ----------------------------------------------------------------------------------

const MEMORY = [
  ["parameters", "Parameters"],
  ["frozen", "Frozen"],
  ["gradients", "Gradients"],
  ["states", "States"],
  ["activations", "Activations"],
];

function showMemory() {
  const { memory } = facts;
  const known = MEMORY.filter(([key]) => memory[key] !== null);
  const total = known.reduce((sum, [key]) => sum + memory[key], 0);
  const most = known.reduce((largest, [key]) => Math.max(largest, memory[key]), 1);
  const whole = el("div", { class: "total", "aria-hidden": "true" }, known.filter(([key]) => memory[key]).map(([key]) => grown(el("i", { class: `of-${key}` }), memory[key])));
  const rows = MEMORY.map(([key, title]) => bar(title, memory[key], most, `of-${key}`));
  const note = memory.activations === null ? "Activations are not known, because shapes are not." : assumed() && `Activations: the most held at once, ${assumed()}.`;
  byId("memory").querySelector("h2").append(el("small", {}, `${bytes(total)} in a step`));
  byId("memory").append(
    el(
      "div",
      { class: "pair" },
      el("div", { class: "card" }, el("h3", {}, "What a step needs"), whole, el("div", { class: "bars" }, rows), note ? el("p", { class: "empty" }, note) : null, frozenList()),
      largest(),
    ),
  );
}

function grown(element, weight) {
  element.style.flexGrow = String(weight);
  return element;
}

function bar(title, value, most, color, label = title) {
  const fill = el("i", { class: color });
  fill.style.width = `${(100 * (value ?? 0)) / most}%`;
  const swatch = typeof label === "string" ? el("span", { class: `swatch ${color}` }) : null;
  return [
    el("span", { class: "label" }, swatch, label),
    el("span", { class: "track", "aria-hidden": "true" }, fill),
    el("span", { class: "number" }, bytes(value)),
  ];
}

function largest() {
  const first = [...parameters].sort((a, b) => b.bytes - a.bytes).slice(0, 10);
  if (!first.length) return null;
  const rows = first.map((parameter) => bar(parameter.name, parameter.bytes, first[0].bytes || 1, "of-parameters", parameterChip(parameter.name, "", fitted(parameter.name))));
  return el("div", { class: "card stack" }, el("h3", {}, "Largest parameters"), el("div", { class: "bars" }, rows));
}

function frozenList() {
  if (!facts.frozen.length) return null;
  return el("div", {}, el("h4", {}, `Frozen, though they could be trained: ${count(facts.frozen.length)}`), chips(facts.frozen, 12));
}

// ---- State, inputs and outputs, stages -------------------------------------------------------

function showState() {
  if (!facts.state.length) return hide("state");
  const columns = [
    { title: "Input", key: (s) => s.input, cell: (s) => named(short(s.input)) },
    { title: "Fed by output", key: (s) => s.output ?? "", cell: (s) => (s.output === null ? el("span", { class: "muted" }, "written in place") : named(short(s.output))) },
    { title: "Kind", key: (s) => s.kind, cell: (s) => words(s.kind), kind: "nowrap" },
    { title: "Shape", key: (s) => shapeText(s.shape), cell: (s) => shapeText(s.shape), kind: "nowrap" },
    { title: "Type", key: (s) => s.dtype, cell: (s) => short(s.dtype, 60) },
    { title: "Bytes", key: (s) => s.bytes, cell: (s) => bytes(s.bytes), kind: "number" },
    { title: "Starts from", key: (s) => String(s.initial ?? ""), cell: (s) => start(s.initial), kind: "nowrap" },
    { title: "Overwritable", key: (s) => Number(s.overwritable), cell: (s) => yes(s.overwritable) },
  ];
  const overwritable = facts.state.filter((state) => state.overwritable).length;
  byId("state").querySelector("h2").append(
    el("small", {}, `${plural(facts.state.length, "value")} that a step hands to the next; ${count(overwritable)} proven overwritable in place`),
  );
  byId("state").append(new Table("State", columns, facts.state, { noun: "value" }).element);
}

function start(initial) {
  if (initial === null) return el("span", { class: "muted" }, "the caller");
  if (initial === "values") return "values in the file";
  return real(initial);
}

function showInterface() {
  const columns = [
    { title: "Name", key: (value) => value.name, cell: (value) => named(short(value.name)) },
    { title: "Shape", key: (value) => shapeText(value.shape), cell: (value) => shapeText(value.shape) },
    { title: "Type", key: (value) => value.dtype, cell: (value) => short(value.dtype, 120) },
  ];
  const side = (title, values, noun) =>
    el("div", { class: "stack" }, el("h3", {}, title), values.length ? new Table(title, columns, values, { noun }).element : el("p", { class: "card muted" }, "None."));
  byId("interface").append(
    el("div", { class: "pair" }, side("A caller feeds", facts.inputs, "input"), side("A caller gets", facts.outputs, "output")),
  );
}

function showStages() {
  if (!facts.stages.length) return hide("stages");
  const most = facts.stages.reduce((largest, stage) => Math.max(largest, stage.flops ?? 0), 1);
  const unknown = facts.stages.some((stage) => stage.unknown);
  const columns = [
    { title: "Stage", cell: (stage) => stage.stage },
    { title: "Nodes", cell: (stage) => count(stage.nodes), kind: "number" },
    { title: "Work", cell: (stage) => [el("span", { class: "share", "aria-hidden": "true" }, sized(stage.flops ?? 0, most, stage.stage)), flops(stage.flops)], kind: "number" },
    { title: "Read and written", cell: (stage) => bytes(stage.bytes), kind: "number" },
    { title: "FLOP per byte", cell: (stage) => (stage.flops === null || !stage.bytes ? "–" : (stage.flops / stage.bytes).toFixed(2)), kind: "number" },
    ...(unknown ? [{ title: "Not counted", cell: (stage) => (stage.unknown ? plural(stage.unknown, "node") : "–"), kind: "number" }] : []),
  ];
  if (assumed()) byId("stages").querySelector("h2").append(el("small", {}, assumed()));
  byId("stages").append(new Table("Stages", columns, facts.stages, { noun: "stage" }).element);
}

function sized(value, most, stage) {
  const fill = el("i", { class: `of-${stage}` });
  fill.style.width = `${(100 * value) / most}%`;
  return fill;
}

// ---- Requirements ----------------------------------------------------------------------------

function showRequirements() {
  const { requirements, targets } = facts;
  const domains = Object.entries(requirements.operators);
  const standard = domains.every(([domain]) => domain === "");
  const opsets = Object.entries(requirements.opsets).map(([domain, version]) => `${domain === "" ? "ONNX" : short(domain)} ${version}`);
  const part = (title, content) => el("div", {}, el("h4", {}, title), content);
  byId("requirements").append(
    el(
      "div",
      { class: "pair" },
      el(
        "div",
        { class: "card stack" },
        el("h3", {}, "What a runtime must support"),
        definitions([
          ["IR version", String(requirements.ir_version)],
          ["Operator sets", opsets.join(", ")],
          ["Standard ONNX", standard ? "yes" : "no"],
        ]),
        domains.map(([domain, operators]) => part(`Operators of ${domain === "" ? "ONNX" : short(domain)}: ${count(operators.length)}`, chips(operators, 60))),
        requirements.functions.length ? part("Functions, defined in the file", chips(requirements.functions)) : null,
      ),
      targets.length ? el("div", { class: "card" }, el("h3", {}, "What runs it"), el("ul", { class: "targets" }, targets.map(target))) : null,
    ),
  );
}

function target(entry) {
  return el(
    "li",
    {},
    entry.runs ? badge("✓ runs", "good") : badge("✗ does not", "error"),
    el("div", {}, el("b", {}, short(entry.name)), entry.reasons.map((reason) => el("p", {}, visible(reason)))),
  );
}

// ---- The page --------------------------------------------------------------------------------

function hide(id) {
  byId(id).hidden = true;
}

function showNavigation() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  const links = new Map();
  for (const section of sections) {
    const title = section.id === "overview" ? "Overview" : section.querySelector("h2").firstChild.textContent;
    const link = el("a", { href: `#${section.id}` }, title);
    if (section.id === "hazards" && facts.hazards.length) {
      const worst = facts.hazards[0].level;
      link.append(el("span", { class: `count ${worst === "error" ? "" : "warning"}` }, count(facts.hazards.length)));
    }
    links.set(section, link);
  }
  document.querySelector("nav").append(...links.values());
  const mark = () => {
    const line = innerHeight / 3;
    const here = sections.filter((section) => section.getBoundingClientRect().top < line).at(-1) ?? sections[0];
    for (const [section, link] of links) {
      if (section === here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

function show() {
  showOverview();
  showHazards();
  showOptimizer();
  showGroups();
  showParameters();
  showGraph();
  showMemory();
  showState();
  showInterface();
  showStages();
  showRequirements();
  showNavigation();
  byId("search").addEventListener("input", search);
}

show();
