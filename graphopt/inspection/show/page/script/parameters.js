// Parameters.

let parameterTable = null;

function showParameters() {
  if (!parameters.length) {
    byId("parameters").append(el("p", { class: "card muted" }, "No parameters were found."));
    return;
  }
  const total = parameters.reduce((sum, parameter) => sum + parameter.bytes, 0) || 1;
  const most = parameters.reduce((largest, parameter) => Math.max(largest, parameter.bytes), 1);
  const columns = [
    { title: "Name", key: (p) => p.name, cell: (p) => breakable(short(p.name)) },
    { title: "Shape", key: (p) => p.shape.length * 1e18 + p.size, cell: (p) => shapeText(p.shape), kind: "nowrap" },
    { title: "Size", key: (p) => p.size, cell: (p) => count(p.size), kind: "number" },
    { title: "Operator", key: (p) => p.op_type ?? "", cell: (p) => short(p.op_type ?? "–", 40), kind: "nowrap" },
    { title: "Group", key: (p) => p.group, cell: (p) => p.group ?? "–", kind: "number" },
    { title: "Learning rate", key: (p) => scheduleKey(p.learning_rate), cell: (p) => scheduleCell(p, "learning_rate", 0), kind: "schedule" },
    { title: "Weight decay", key: (p) => scheduleKey(p.weight_decay), cell: (p) => scheduleCell(p, "weight_decay", 1), kind: "schedule" },
    { title: "Centralized", key: (p) => Number(p.grad_centralization), cell: (p) => yes(p.grad_centralization) },
    { title: "States", key: (p) => p.states.join(" "), cell: (p) => p.states.map((state) => words(state).replace("mean ", "")).join(", ") || "–", kind: "nowrap" },
    { title: "Bytes", key: (p) => p.bytes, cell: (p) => bytes(p.bytes), kind: "number" },
    { title: "Share", key: (p) => p.bytes, cell: (p) => share(p.bytes / total, p.bytes / most), kind: "number" },
  ];
  opener = (name) => {
    const parameter = parameterNamed.get(name);
    return parameter ? () => openParameter(parameter) : null;
  };
  parameterTable = new Table("Parameters", columns.filter(({ title }) => saysSomething(title)), parameters, { details: parameterDetails, noun: "parameter" });
  byId("parameters").append(parameterTable.element);
  searchers.push((query) => {
    const found = parameterTable.filter((parameter) => parameterFits(parameter, query));
    return plural(found, "parameter");
  });
}

/** Whether a column is not empty: a model without an optimizer has no groups, rates and states. */
function saysSomething(title) {
  const facts_ = {
    Operator: (p) => p.op_type !== null,
    Group: (p) => p.group !== null,
    "Learning rate": (p) => p.learning_rate !== null,
    "Weight decay": (p) => p.weight_decay !== null,
    Centralized: (p) => facts.optimizer !== null || p.grad_centralization,
    States: (p) => p.states.length > 0,
  };
  return !facts_[title] || parameters.some(facts_[title]);
}

/** A number, or the name of the group whose schedule it is: the groups say what that is. */
function scheduleCell(parameter, key, at) {
  const written = parameter.rule[key];
  const ofGroup = parameter.group !== null && data.groups[parameter.group]?.[at] === written;
  const said = typeof parameter[key] === "object" && parameter[key] && ofGroup ? `of group ${parameter.group}` : short(written, 100);
  return el("span", { title: visible(written) }, said);
}

function share(part, width) {
  return [el("span", { class: "share", "aria-hidden": "true" }, fill(width, "parameters")), percent(part)];
}

function openParameter(parameter) {
  if (!parameterTable.kept.includes(parameter)) searchFor("");
  parameterTable.reveal(parameter);
}

function parameterDetails(parameter) {
  const bucket = bucketNamed.get(parameter.bucket);
  const lines = parameter.rule.lines;
  const parts = [
    facts.optimizer ? titled("Its update", lines.length ? formula(lines) : el("p", { class: "muted" }, "This file has no update for it.")) : null,
    el("div", { class: "stack" }, parameterFacts(parameter), bucket ? bucketmates(parameter, bucket) : null),
    data.graph ? el("div", { class: "wide" }, el("button", { class: "link", type: "button", on: { click: () => showWayOf(parameter) } }, "Its way through the graph")) : null,
    el("div", { class: "wide stack" }, readers(parameter), bucket ? bucketNodes(parameter, bucket) : null),
  ];
  return parts.filter(Boolean);
}

function parameterFacts(parameter) {
  const gradient = parameter.gradient === null ? null : named(parameter.gradient);
  return definitions([
    ["Name", named(parameter.name)],
    ["Gradient", gradient],
    ["Made by", parameter.nodes?.made ? named(parameter.nodes.made, "code") : null],
    ["Learning rate", parameter.learning_rate === null ? null : visible(parameter.rule.learning_rate)],
    ["Weight decay", parameter.weight_decay === null ? null : visible(parameter.rule.weight_decay)],
    ["Type", visible(parameter.dtype)],
    ["States", parameter.states.map(words).join(", ")],
    ["Memory", `${bytes(parameter.bytes)}${parameter.states.length ? ` and ${bytes(parameter.state_bytes)} of states` : ""}`],
  ]);
}

function bucketmates(parameter, bucket) {
  const at = bucket.parameters.indexOf(parameter.name);
  const first = Math.max(0, at - 5);
  const near = bucket.parameters.slice(first, first + 12);
  const left = bucket.parameters.length - near.length;
  const title = [`Bucket `, named(bucket.name), `, ${shapeText(bucket.shape)}: ${at + 1} of ${plural(bucket.parameters.length, "parameter")}`];
  const rest = el("button", { class: "link", type: "button", on: { click: () => searchFor(`bucket:${bucket.name}`) } }, `${count(left)} more`);
  return titled(
    title,
    bucket.function ? el("p", { class: "line" }, "Function ", named(bucket.function)) : null,
    el(
      "ul",
      { class: "chips" },
      near.map((name) => el("li", {}, parameterChip(name, name === parameter.name ? "here" : ""))),
      left && !/\s/.test(bucket.name) ? el("li", {}, rest) : null,
    ),
  );
}

function readers(parameter) {
  if (!parameter.nodes?.read.length) return null;
  const nodes = parameter.nodes.read.map((node) => el("li", {}, visible(node)));
  return titled("Read by", el("ul", { class: "nodes" }, nodes));
}

/** The nodes of the update; those that name the parameter stand out. */
function bucketNodes(parameter, bucket) {
  if (!bucket.nodes.length) return null;
  const tensors = [parameter.name, parameter.gradient].filter(Boolean);
  const made = (node) => el("li", { class: tensors.some((tensor) => names(node, tensor)) ? "own" : "" }, short(node, 2000));
  const list = el("ul", { class: "nodes", tabindex: 0, role: "region", "aria-label": "Nodes of the update" });
  const own = bucket.nodes.filter((node) => tensors.some((tensor) => names(node, tensor)));
  const few = bucket.nodes.length <= 60 ? bucket.nodes : [...new Set([...own, ...bucket.nodes])];
  const note = few === bucket.nodes ? "in order" : "those that name it first";
  return titled(`Its nodes: ${count(bucket.nodes.length)}, ${note}`, limited(list, few, made, 60));
}

/** Whether a node's text has this tensor as a whole name. */
function names(node, tensor) {
  for (let at = node.indexOf(tensor); at >= 0; at = node.indexOf(tensor, at + 1)) {
    const [before, after] = [node[at - 1] ?? " ", node[at + tensor.length] ?? " "];
    if (/[\s(",]/.test(before) && /[\s)",]/.test(after)) return true;
  }
  return false;
}
