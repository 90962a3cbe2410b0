// The facts of an inspection, each parameter with what is said of it elsewhere.

const facts = decoded(data.facts);
const groups = facts.groups;
const parameters = facts.parameters.map((parameter, index) => ({
  ...parameter,
  index,
  rule: data.rules[data.rule[index]],
  nodes: data.nodes?.[index],
  size: elementsOf(parameter.shape),
}));
const parameterNamed = new Map(parameters.map((parameter) => [parameter.name, parameter]));
const bucketNamed = new Map(facts.buckets.map((bucket) => [bucket.name, bucket]));
