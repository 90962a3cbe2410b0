// The drawing of a graph: boxes and lines, moved and zoomed.

const ZOOM = { least: 0.02, most: 3, step: 1.25 };
const ALL_AT_ONCE = 300;
const LEGIBLE = 0.45;
const NARROW = 700;

/** Boxes of what is seen; calls choose(item), toggle(item) of its view. */
class Drawing {
  constructor(view) {
    Object.assign(this, { view, x: 0, y: 0, scale: 1, plan: null });
    this.world = svg("g");
    this.picture = svg("svg", { class: "picture", role: "img", tabindex: 0 }, this.world);
    this.element = el("div", { class: "drawing" }, this.picture);
    this.picture.addEventListener("click", (event) => this.click(event));
    this.picture.addEventListener("dblclick", (event) => this.open(event));
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.picture.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.pointers = new Map();
    for (const [name, method] of [["pointerdown", "press"], ["pointermove", "drag"], ["pointerup", "release"], ["pointercancel", "release"]]) {
      this.picture.addEventListener(name, (event) => this[method](event));
    }
    new ResizeObserver(() => this.resized()).observe(this.element);
  }

  get size() {
    return { width: this.element.clientWidth || 800, height: this.element.clientHeight || 500 };
  }

  resized() {
    const narrow = this.size.width < NARROW;
    if (narrow !== this.narrow) this.view.refresh({ fit: true });
    else this.move();
  }

  /** Draws anew what is seen. */
  draw(fit) {
    this.narrow = this.size.width < NARROW;
    this.plan = arranged(this.view.tree, this.narrow);
    this.items = this.view.tree.seen();
    this.all = this.items.length <= ALL_AT_ONCE;
    this.picture.setAttribute("aria-label", `Drawing of the graph: ${plural(this.items.length, "box", "boxes")}; the list of modules has the same. Arrow keys move it, plus and minus zoom, 0 shows all.`);
    if (fit) this.fit();
    else this.render();
  }

  fit() {
    const { width, height } = this.size;
    const room = Math.min(width / (this.plan.width + 16), height / (this.plan.height + 16));
    this.scale = Math.min(Math.max(room, Math.min(LEGIBLE + 0.2, width / (this.plan.width + 16))), 1);
    this.x = Math.max((width - this.plan.width * this.scale) / 2, 8);
    this.y = 8;
    this.render();
  }

  /** All of it, however small. */
  whole() {
    const { width, height } = this.size;
    this.scale = Math.max(Math.min(width / (this.plan.width + 16), height / (this.plan.height + 16), 1), ZOOM.least);
    this.x = (width - this.plan.width * this.scale) / 2;
    this.y = (height - this.plan.height * this.scale) / 2;
    this.render();
  }

  zoom(factor, x = this.size.width / 2, y = this.size.height / 2) {
    const next = Math.min(Math.max(this.scale * factor, ZOOM.least), ZOOM.most);
    this.x = x - ((x - this.x) * next) / this.scale;
    this.y = y - ((y - this.y) * next) / this.scale;
    this.scale = next;
    this.move(true);
  }

  pan(right, down) {
    this.x += right;
    this.y += down;
    this.move();
  }

  /** Brings an item into sight. */
  goTo(item) {
    const { width, height } = this.size;
    this.scale = Math.max(this.scale, 0.7);
    this.x = width / 2 - (item.x + Math.min(item.width, width / this.scale) / 2) * this.scale;
    this.y = height / 2 - (item.y + Math.min(item.height, height / this.scale) / 2) * this.scale;
    this.render();
  }

  move(zoomed = false) {
    if (!this.plan) return;
    const legible = this.scale >= LEGIBLE;
    if (this.all && !(zoomed && legible !== this.legible)) this.place();
    else if (!this.waiting) {
      this.waiting = requestAnimationFrame(() => {
        this.waiting = null;
        this.render();
      });
    }
  }

  place() {
    this.world.setAttribute("transform", `translate(${this.x.toFixed(1)} ${this.y.toFixed(1)}) scale(${this.scale.toFixed(4)})`);
  }

  /** What is in sight, or everything. */
  render(everything = this.all) {
    if (!this.plan) return;
    const { width, height } = this.size;
    const [left, top] = [-this.x / this.scale - 50, -this.y / this.scale - 50];
    const [right, bottom] = [left + width / this.scale + 100, top + height / this.scale + 100];
    const inside = (x, y, end, under) => everything || (x < right && end > left && y < bottom && under > top);
    this.legible = this.scale >= LEGIBLE;
    const boxes = this.items.filter((item) => inside(item.x, item.y, item.x + item.width, item.y + item.height));
    const edges = this.plan.edges.filter(({ from, to, route }) => inside(Math.min(from.x, to.x, route.x), Math.min(from.y, to.y), Math.max(from.x + from.width, to.x + to.width, route.x), Math.max(from.y, to.y) + 40));
    this.most = Math.max(...this.items.filter((item) => item.folded).map((item) => shareOf(item, this.view.tree, this.view.metric) ?? 0), 1e-9);
    const open = boxes.filter((item) => !item.folded);
    const closed = boxes.filter((item) => item.folded);
    this.world.replaceChildren(...open.map((item) => this.box(item)), ...edges.flatMap((edge) => this.edge(edge)), ...closed.map((item) => this.box(item)));
    this.place();
  }

  box(item) {
    const { view } = this;
    const module = !item.node;
    const kinds = ["box", item.stage, module ? "module" : "node", item.folded ? "" : "open", view.chosen === item ? "chosen" : "", view.way.has(item) ? "way" : "", view.found.has(item) ? "found" : "", view.markOf(item)];
    const group = svg("g", { class: kinds.filter(Boolean).join(" "), transform: `translate(${item.x.toFixed(1)} ${item.y.toFixed(1)})` });
    const frame = svg("rect", { class: "frame", width: item.width, height: item.height, rx: module ? 8 : 4 });
    const share = shareOf(item, view.tree, view.metric);
    if (share !== null && item.folded) frame.style.fill = `color-mix(in srgb, var(--heat) ${heat(share, this.most)}%, var(--surface))`;
    group.append(frame);
    group.item = item;
    if (!this.legible && this.items.length > 60 && item.folded) return group;
    const room = Math.floor((item.width - (module ? 34 : 18)) / 7.3);
    const hint = svg("title", {}, this.hint(item));
    const title = svg("text", { class: "title", x: module ? 26 : 10, y: 18 }, cut(visible(item.label), room));
    group.append(hint, title);
    if (module) group.append(svg("text", { class: "fold", x: 11, y: 18 }, item.folded ? "▸" : "▾"));
    if (item.folded) group.append(svg("text", { class: "what", x: module ? 26 : 10, y: 35 }, begun(this.what(item, share), Math.floor((item.width - (module ? 32 : 16)) / 6.4))));
    return group;
  }

  /** The second line of a box. */
  what(item, share) {
    if (share !== null) return `${METRICS[this.view.metric].written(METRICS[this.view.metric].of(item.totals))}, ${percent(share)}`;
    if (!item.node) return plural(item.totals.nodes, "node");
    const [first] = item.node.outputs;
    return first ? `${short(item.node.op, 40)} → ${tensorType(first)}` : short(item.node.op, 40);
  }

  hint(item) {
    if (!item.node) return `${item.key}: ${plural(item.totals.nodes, "node")}`;
    return `${short(item.node.op, 60)} ${short(item.node.name, 200)} ${short(item.node.attributes, 300)}`.trim();
  }

  edge({ from, to, values, route }) {
    const active = this.view.chosen === from || this.view.chosen === to || (this.view.way.has(from) && this.view.way.has(to)) ? " active" : "";
    const parts = [svg("path", { class: `line${active}`, d: route.line }), svg("path", { class: `tip${active}`, d: route.tip })];
    if (this.legible && (!route.skips || active)) {
      const [first] = values;
      const said = values.size === 1 ? tensorType(first) : `${count(values.size)} tensors`;
      parts.push(svg("text", { class: `tensor${active}`, x: route.x.toFixed(1), y: route.y.toFixed(1), "text-anchor": "middle" }, cut(said, 30)));
    }
    return parts;
  }

  itemAt(event) {
    return event.target.closest("g.box")?.item;
  }

  click(event) {
    if (this.moved) return;
    const item = this.itemAt(event);
    if (!item) return;
    if (event.target.closest(".fold")) this.view.toggle(item);
    else this.view.choose(item);
  }

  open(event) {
    const item = this.itemAt(event);
    if (item && !item.node) this.view.toggle(item);
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = this.picture.getBoundingClientRect();
    this.zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }

  key(event) {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (steps[event.key]) this.pan(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(ZOOM.step);
    else if (event.key === "-") this.zoom(1 / ZOOM.step);
    else if (event.key === "0") this.whole();
    else return;
    event.preventDefault();
  }

  press(event) {
    this.pointers.set(event.pointerId, event);
    this.moved = false;
  }

  /** One pointer moves the drawing, two zoom it. */
  drag(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const [right, down] = [event.clientX - last.clientX, event.clientY - last.clientY];
    if (!this.moved && Math.hypot(right, down) < 4) return;
    this.moved = true;
    if (!this.picture.hasPointerCapture(event.pointerId)) this.picture.setPointerCapture(event.pointerId);
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    if (other) {
      const distance = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
      const box = this.picture.getBoundingClientRect();
      this.zoom(distance(event) / (distance(last) || 1), other.clientX - box.left, other.clientY - box.top);
    } else this.pan(right, down);
    this.pointers.set(event.pointerId, event);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
  }
}

/** Text of so many characters; of longer one, the end stays. */
function cut(text, most) {
  return text.length <= most ? text : `…${text.slice(text.length - Math.max(most - 1, 1))}`;
}

/** Text of so many characters; of longer one, the beginning stays. */
function begun(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}

/** The shape and the dtype of a tensor. */
function tensorType(value) {
  const shape = value.shape === null ? "?" : value.shape.length ? value.shape.map((size) => (size === null ? "?" : short(size, 20))).join("×") : "scalar";
  return value.dtype ? `${shape} ${value.dtype}` : shape;
}
