// What is chosen in a graph, in words.

const FEW_TENSORS = 8;

function nodeCard(view, node) {
  const of = view.tree.of.get(node);
  return el(
    "div",
    { class: "card" },
    el("div", { class: "head" }, badge(node.stage), el("h3", {}, named(short(node.op, 80))), named(short(view.model.title(node), 400))),
    definitions([
      ["Module", node.path.length ? named(node.path.join(" / ")) : null],
      ["Attributes", node.attributes ? named(node.attributes, "code") : null],
      ...costs(of.totals, node),
    ]),
    tensors(view, "Reads", node.inputs.filter(Boolean), (value) => origin(view, value)),
    tensors(view, "Makes", node.outputs, (value) => goals(view, value)),
  );
}

function costs(totals, node = totals) {
  return [
    ["FLOPs", node.flops === null ? "unknown" : flops(totals.flops)],
    ["Bytes moved", node.moved === null ? "unknown" : bytes(totals.moved)],
    ["Memory of what it makes", node.memory === null ? "unknown" : bytes(totals.memory)],
    ["Measured time", node.time === null || !totals.time ? null : milliseconds(totals.time)],
  ];
}

function tensors(view, title, values, beside) {
  if (!values.length) return null;
  const line = (value) =>
    el("li", {}, named(short(value.name, 200)), el("span", { class: "muted" }, ` ${tensorType(value)}${value.bytes === null ? "" : `, ${bytes(value.bytes)}`} `), beside(value));
  return titled(title, limited(el("ul", { class: "tensors" }), values, line, FEW_TENSORS));
}

function origin(view, value) {
  if (value.maker) return ["from ", nodeLink(view, value.maker)];
  const parameter = view.parameterNamed.get(value.name);
  if (parameter) return ["a parameter ", wayLink(view, parameter)];
  return view.model.inputs.has(value.index) ? "an input" : "a constant";
}

function goals(view, value) {
  const links = value.readers.slice(0, 4).flatMap((node) => [nodeLink(view, node), " "]);
  const more = value.readers.length > 4 ? `and ${count(value.readers.length - 4)} more ` : "";
  const out = view.model.outputs.has(value.index) ? "an output" : "";
  return [links.length ? "to " : "", links, more, out];
}

function nodeLink(view, node) {
  return el("button", { class: "chip", type: "button", on: { click: () => view.chooseNode(node) } }, short(view.model.title(node), 80));
}

function wayLink(view, parameter) {
  return el("button", { class: "link", type: "button", on: { click: () => view.showWay(parameter) } }, "its way");
}

function moduleCard(view, item) {
  const nodes = view.tree.nodesIn(item);
  const own = new Set(nodes);
  const operators = new Map();
  for (const node of nodes) operators.set(node.op, (operators.get(node.op) ?? 0) + 1);
  const counted = [...operators].sort(([, a], [, b]) => b - a).map(([op, times]) => (times > 1 ? `${op} × ${times}` : op));
  const read = new Set(nodes.flatMap((node) => node.inputs.filter((value) => value && !own.has(value.maker))));
  const trained = [...read].map((value) => view.parameterNamed.get(value.name)).filter(Boolean);
  const enters = [...read].filter((value) => value.maker && !view.parameterNamed.has(value.name));
  const leaves = nodes.flatMap((node) => node.outputs).filter((value) => view.model.outputs.has(value.index) || value.readers.some((node) => !own.has(node)));
  const fold = el("button", { class: "link", type: "button", on: { click: () => view.toggle(item) } }, item.folded ? "Unfold" : "Fold");
  return el(
    "div",
    { class: "card" },
    el("div", { class: "head" }, badge(item.stage), el("h3", {}, named(short(item.label, 200))), el("span", { class: "muted" }, plural(item.totals.nodes, "node")), fold),
    definitions(costs(item.totals)),
    titled("Operators", chips(counted, 16)),
    trained.length ? titled(`Parameters: ${count(trained.length)}`, chips(trained, 12, (parameter) => el("li", {}, parameterChip(parameter.name), " ", wayLink(view, parameter)))) : null,
    tensors(view, "Enters", enters, (value) => origin(view, value)),
    tensors(view, "Leaves", leaves, (value) => goals(view, value)),
  );
}

function wayCard(view, parameter, steps) {
  const step = ({ title, nodes }) =>
    el("li", {}, el("h3", { class: "minor" }, title), limited(el("ul", { class: "chips" }), nodes, (node) => el("li", {}, nodeLink(view, node), el("span", { class: "muted" }, ` ${short(node.op, 40)}`)), 12));
  return el(
    "div",
    { class: "card" },
    el("div", { class: "head" }, badge("way"), el("h3", {}, named(short(parameter.name, 200))), el("button", { class: "link", type: "button", on: { click: () => view.showWay(null) } }, "Clear")),
    steps.length ? el("ol", { class: "steps" }, steps.map(step)) : el("p", { class: "muted" }, "No node of this graph has it."),
  );
}
