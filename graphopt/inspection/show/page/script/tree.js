// The nodes of a graph, folded into modules.

const MOST_CHILDREN = 150;
const NOTHING = { nodes: 0, flops: 0, moved: 0, memory: 0, time: 0 };

/** The rows of a graph as objects that know each other. */
class GraphModel {
  constructor(packed, times) {
    const { shapes, dtypes, attributes, modules } = packed;
    Object.assign(this, { buckets: packed.buckets, inputs: new Set(packed.inputs), outputs: new Set(packed.outputs), timed: Boolean(times) });
    this.values = packed.values.map(([name, shape, dtype, size], index) => ({
      index, name, shape: shapes[shape], dtype: dtypes[dtype], bytes: size, maker: null, readers: [],
    }));
    this.nodes = packed.nodes.map(([name, op, stage, module, read, made, written, work, moved], index) => {
      const node = { index, name, op, stage: STAGES[stage], path: modules[module], attributes: attributes[written], flops: work, moved, time: times ? times[index] : null };
      node.inputs = read.map((at) => (at < 0 ? null : this.values[at]));
      node.outputs = made.map((at) => this.values[at]).filter((value) => value?.name);
      node.memory = node.outputs.every((value) => value.bytes !== null) ? node.outputs.reduce((sum, value) => sum + value.bytes, 0) : null;
      for (const value of node.outputs) value.maker = node;
      for (const value of new Set(node.inputs)) value?.readers.push(node);
      return node;
    });
    this.named = new Map(this.values.map((value) => [value.name, value]));
    this.nodeNamed = new Map(this.nodes.map((node) => [node.name, node]));
  }

  title(node) {
    return node.name || node.outputs[0]?.name || node.op;
  }
}

/** The modules: each item is a node, or has items inside. */
class Tree {
  constructor(model, { buckets = false } = {}) {
    this.model = model;
    this.items = new Map();
    this.of = new Map();
    this.root = this.item("", "graph", null);
    for (const stage of STAGES) {
      const own = model.nodes.filter((node) => node.stage === stage && (buckets || node.path[0] !== model.buckets));
      if (!own.length) continue;
      const top = this.item(stage, stage, this.root, stage);
      top.places = new Map();
      this.root.children.push(top);
      for (const node of own) this.place(node, top);
      this.settle(top);
    }
    this.root.totals = this.total(this.root.children);
  }

  item(key, label, parent, stage = parent?.stage) {
    const item = { key, label, parent, stage, node: null, children: [], folded: true };
    this.items.set(key, item);
    return item;
  }

  place(node, top) {
    if (!top.places.has(node.path)) top.places.set(node.path, this.module(node.path, top));
    const here = top.places.get(node.path);
    const leaf = this.item(`${here.key}#${node.index}`, lastPart(this.model.title(node)), here);
    leaf.node = node;
    this.of.set(node, leaf);
    here.children.push(leaf);
  }

  module(path, top) {
    let here = top;
    for (const part of path) {
      const key = `${here.key}/${part}`;
      const found = this.items.get(key);
      if (!found) here.children.push(this.item(key, part, here));
      here = this.items.get(key);
    }
    return here;
  }

  /** Items of one are that one, many are parts; then sums, and the depth. */
  settle(item) {
    item.children.forEach((child, at) => {
      let inner = child;
      while (!inner.node && inner.children.length === 1) {
        const [only] = inner.children;
        this.items.delete(inner.key);
        only.label = only.node ? inner.label : `${inner.label}.${only.label}`;
        inner = only;
      }
      inner.parent = item;
      item.children[at] = inner;
      this.settle(inner);
    });
    if (item.children.length > MOST_CHILDREN) this.divide(item);
    item.first = item.node ? item.node.index : item.children.reduce((least, child) => Math.min(least, child.first), Infinity);
    item.children.sort((a, b) => a.first - b.first);
    item.totals = item.node ? sums(item.node) : this.total(item.children);
  }

  divide(item) {
    const size = Math.max(50, Math.ceil(item.children.length / 100));
    const parts = [];
    const all = item.children.sort((a, b) => a.first - b.first);
    for (let at = 0; at < all.length; at += size) {
      const own = all.slice(at, at + size);
      const part = this.item(`${item.key}/[${at}]`, `${own[0].label} … ${own.at(-1).label}`, item);
      part.children = own;
      for (const child of own) child.parent = part;
      part.first = own[0].first;
      part.totals = this.total(own);
      parts.push(part);
    }
    item.children = parts;
    if (parts.length > MOST_CHILDREN) this.divide(item);
  }

  total(children) {
    const total = { ...NOTHING };
    for (const child of children) for (const key of Object.keys(total)) total[key] += child.totals[key];
    return total;
  }

  /** What can be seen: the items whose modules are all unfolded, each before those inside. */
  seen(item = this.root, depth = 0, found = []) {
    for (const child of item.children) {
      found.push(Object.assign(child, { depth }));
      if (!child.folded) this.seen(child, depth + 1, found);
    }
    return found;
  }

  /** Unfolds from the outside in, as long as not too much is seen then. */
  unfold(item, most) {
    let waiting = [item];
    let count_ = 1;
    while (waiting.length) {
      const next = [];
      for (const module of waiting) {
        if (!module.children.length || count_ + module.children.length > most) continue;
        module.folded = false;
        count_ += module.children.length;
        next.push(...module.children);
      }
      waiting = next;
    }
  }

  reveal(item) {
    for (let outer = item.parent; outer; outer = outer.parent) outer.folded = false;
  }

  /** The item that is seen of a node: itself, or the module that hides it. */
  shown(node) {
    const leaf = this.of.get(node);
    let shown = leaf;
    for (let item = leaf?.parent; item && item !== this.root; item = item.parent) if (item.folded) shown = item;
    return shown;
  }

  nodesIn(item, found = []) {
    if (item.node) found.push(item.node);
    else for (const child of item.children) this.nodesIn(child, found);
    return found;
  }

  /** What the items of a module hand to each other: from, to, and the values. */
  edges(module) {
    const inside = module.children.map((child) => this.nodesIn(child));
    const below = new Map();
    inside.forEach((nodes, at) => nodes.forEach((node) => below.set(node, module.children[at])));
    return module.children.flatMap((to, at) => {
      const found = new Map();
      for (const node of inside[at]) {
        for (const value of node.inputs) {
          const from = value?.maker && below.get(value.maker);
          if (!from || from === to) continue;
          if (!found.has(from)) found.set(from, { from, to, values: new Set() });
          found.get(from).values.add(value);
        }
      }
      return [...found.values()];
    });
  }
}

/** What is behind the scopes in a name. */
function lastPart(name) {
  return name.slice(name.lastIndexOf("/", name.length - 2) + 1);
}

function sums(node) {
  return { nodes: 1, flops: node.flops ?? 0, moved: node.moved ?? 0, memory: node.memory ?? 0, time: node.time ?? 0 };
}
