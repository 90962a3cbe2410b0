// The overview.

function showOverview() {
  const { model, memory, stages } = facts;
  const file = fileName(model.name);
  document.title = `${short(file, 80)} – inspection`;
  byId("name").textContent = short(file, 400);
  const line = [visible(model.kind), plural(model.nodes, "node"), bytes(model.bytes)];
  if (model.precision.some((kind) => kind !== "float32")) line.push(`computed in ${model.precision.join(" and ")}`);
  if (model.producer) line.push(`made by ${short(model.producer)}`);
  if (file !== model.name) line.push(short(model.name, 400));
  const known = stages.filter((stage) => stage.flops !== null);
  const work = known.length ? known.reduce((sum, stage) => sum + stage.flops, 0) : null;
  const elements = parameters.reduce((sum, parameter) => sum + parameter.size, 0);
  const needed = MEMORY.reduce((sum, [key]) => sum + (memory[key] ?? 0), 0);
  const figures = [
    ["Parameters", count(elements), `in ${plural(parameters.length, "tensor")}`],
    groups.length ? ["Groups", count(groups.length), facts.layout ? `layout: ${visible(facts.layout)}` : ""] : null,
    memory.states ? ["States", bytes(memory.states), [...new Set(parameters.flatMap((p) => p.states))].map(words).join(", ")] : null,
    ["Memory of a step", bytes(needed), memory.activations === null ? "without activations" : assumed()],
    ["Work of a step", flops(work), stages.some((stage) => stage.unknown) ? "what is known of it" : assumed()],
  ].filter(Boolean);
  byId("overview").append(factLine(line), tiles(figures));
}
