// Memory.

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
  const whole = el("div", { class: "total", "aria-hidden": "true" }, known.filter(([key]) => memory[key]).map(([key]) => grown(colored("i", {}, key), memory[key])));
  const present = MEMORY.filter(([key]) => facts.optimizer || memory[key] !== 0);
  const rows = present.map(([key, title]) => bar(title, memory[key], most, key));
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
  const swatch = typeof label === "string" ? colored("span", { class: "swatch" }, color) : null;
  return [
    el("span", { class: "label" }, swatch, label),
    el("span", { class: "track", "aria-hidden": "true" }, fill((value ?? 0) / most, color)),
    el("span", { class: "number" }, bytes(value)),
  ];
}

function largest() {
  const first = [...parameters].sort((a, b) => b.bytes - a.bytes).slice(0, 10);
  if (!first.length) return null;
  const rows = first.map((parameter) => bar(parameter.name, parameter.bytes, first[0].bytes || 1, "parameters", parameterChip(parameter.name, "", fitted(parameter.name))));
  return el("div", { class: "card stack" }, el("h3", {}, "Largest parameters"), el("div", { class: "bars" }, rows));
}

function frozenList() {
  if (!facts.frozen.length) return null;
  return titled(`Frozen, though they could be trained: ${count(facts.frozen.length)}`, chips(facts.frozen, 12));
}
