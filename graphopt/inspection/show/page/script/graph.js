// The graph, stage by stage.

const layers = facts.layers.map((layer) => {
  const own = bucketNamed.get(layer.name);
  const trained = layer.stage === "update" && own ? own.parameters : layer.parameters;
  return { ...layer, trained: trained.map((name) => parameterNamed.get(name)).filter(Boolean) };
});
const lanes = new Map();

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
  return el(
    "div",
    { class: "card" },
    el("div", { class: "head" }, badge(layer.stage), el("h3", {}, named(short(layer.name, 1000))), el("span", { class: "muted" }, plural(layer.nodes, "node"))),
    el(
      "div",
      { class: "parts" },
      titled("Operators", chips(shown)),
      layer.trained.length
        ? titled("Parameters", chips(layer.trained.map((parameter) => parameter.name), 12, (name) => el("li", {}, parameterChip(name))))
        : null,
      layer.after.length ? titled("Reads from", chips(layer.after, 8)) : null,
      before.length ? titled("Read by", chips(before.map((other) => other.name), 8)) : null,
    ),
  );
}
