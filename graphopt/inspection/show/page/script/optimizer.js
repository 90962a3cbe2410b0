// The optimizer.

const HYPERPARAMETERS = [
  "decay", "momentum", "epsilon", "centered", "loss_scale", "epsilon_inside_root", "initial_mean_square",
  "learning_rate_inside_moment", "decoupled_weight_decay", "nesterov", "skip_on_overflow", "clip_norm", "clip_value", "average", "accumulation", "group_mask", "guarded", "use_locking", "steps",
];

/** What some are called that are not called after their key. */
const TERMS = {
  epsilon_inside_root: "epsilon inside the root",
  learning_rate_inside_moment: "learning rate inside the moment",
  nesterov: "Nesterov",
  steps: "learning rates for",
};

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
  const own = HYPERPARAMETERS.map((key) => [TERMS[key] ?? words(key), hyperparameter(key, optimizer[key])]);
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
  const written = data.optimizer?.[key];
  if (written !== undefined) return visible(written);
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
