// The optimizer.

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
      lines.length ? titled("Update of a parameter", formula(lines)) : null,
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
