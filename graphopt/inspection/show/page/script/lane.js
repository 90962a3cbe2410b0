// The layers of one stage.

const GAP = 18;
const MOST_TRACKS = 10;
const TRACK = 8;
const PRINTED = 1000;

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
    this.element.style.setProperty("--stage", `var(--${stage})`);
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
    const last = this.tops.findLastIndex((top) => top <= height);
    return Math.min(Math.max(last, 0), this.layers.length - 1);
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
