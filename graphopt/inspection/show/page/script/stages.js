// What each stage costs.

function showStages() {
  if (!facts.stages.length) return hide("stages");
  const present = facts.stages.filter((stage) => stage.nodes);
  const most = facts.stages.reduce((largest, stage) => Math.max(largest, stage.flops ?? 0), 1);
  const unknown = facts.stages.some((stage) => stage.unknown);
  const columns = [
    { title: "Stage", cell: (stage) => stage.stage },
    { title: "Nodes", cell: (stage) => count(stage.nodes), kind: "number" },
    ...(facts.stages.some((stage) => stage.inside) ? [{ title: "Inside", cell: (stage) => count(stage.inside), kind: "number" }] : []),
    { title: "Work", cell: (stage) => [el("span", { class: "share", "aria-hidden": "true" }, fill((stage.flops ?? 0) / most, "parameters")), flops(stage.flops)], kind: "number" },
    { title: "Read and written", cell: (stage) => bytes(stage.bytes), kind: "number" },
    { title: "FLOP per byte", cell: (stage) => (stage.flops === null || !stage.bytes ? "–" : (stage.flops / stage.bytes).toFixed(2)), kind: "number" },
    ...(unknown ? [{ title: "Not counted", cell: (stage) => (stage.unknown ? plural(stage.unknown, "node") : "–"), kind: "number" }] : []),
  ];
  if (assumed()) byId("stages").querySelector("h2").append(el("small", {}, assumed()));
  byId("stages").append(new Table("Stages", columns, present, { noun: "stage" }).element);
}
