// The way of a parameter through a graph.

const LONGEST_WAY = 300;

/** Where a parameter comes from, what reads it, what makes its gradient, and what updates it. */
function wayOf(parameter, model) {
  const value = model.named.get(parameter.name);
  const gradient = parameter.gradient === null ? undefined : model.named.get(parameter.gradient);
  const taken = value ? origins(value, (node) => node.path[0] === model.buckets) : [];
  const read = value ? value.readers.filter((node) => node.stage === "forward" || node.stage === "loss") : [];
  const maker = gradient?.maker;
  const made = maker ? origins(gradient, (node) => node === maker || (node.stage === "backward" && String(node.path) === String(maker.path))) : [];
  const bucket = parameter.bucket ?? parameter.name;
  const update = gradient ? readersOf(gradient, (node) => node.stage === "update" && node.path.at(-1) === bucket) : [];
  return [
    { title: "Taken out of its bucket by", nodes: taken.reverse() },
    { title: "Read by", nodes: read },
    { title: "Its gradient is made by", nodes: made.reverse() },
    { title: "Updated by", nodes: update },
  ].filter((step) => step.nodes.length);
}

function origins(value, belongs) {
  const found = new Set();
  const waiting = [value.maker];
  while (waiting.length && found.size < LONGEST_WAY) {
    const node = waiting.pop();
    if (!node || found.has(node) || !belongs(node)) continue;
    found.add(node);
    waiting.push(...node.inputs.map((input) => input?.maker));
  }
  return [...found].sort((a, b) => b.index - a.index);
}

function readersOf(value, belongs) {
  const found = new Set();
  const waiting = [...value.readers];
  while (waiting.length && found.size < LONGEST_WAY) {
    const node = waiting.pop();
    if (found.has(node) || !belongs(node)) continue;
    found.add(node);
    waiting.push(...node.outputs.flatMap((output) => output.readers));
  }
  return [...found].sort((a, b) => a.index - b.index);
}
