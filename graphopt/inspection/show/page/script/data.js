"use strict";

// Names come from files that nobody vouches for. They go into the page as text nodes only.

const STAGES = ["forward", "loss", "backward", "update"];
const data = JSON.parse(document.getElementById("facts").textContent);
const facts = decoded(data.facts);
const groups = facts.groups;
const parameters = facts.parameters.map((parameter, index) => ({
  ...parameter,
  index,
  rule: data.rules[data.rule[index]],
  nodes: data.nodes?.[index],
  size: parameter.shape.reduce((size, dimension) => size * dimension, 1),
}));
const parameterNamed = new Map(parameters.map((parameter) => [parameter.name, parameter]));
const bucketNamed = new Map(facts.buckets.map((bucket) => [bucket.name, bucket]));

/** Tables were written with their keys once. */
function decoded(packed) {
  const entry = (keys, row) => Object.fromEntries(keys.map((key, at) => [key, row[at]]));
  const unpacked = (value) =>
    value && value.keys && value.rows ? value.rows.map((row) => entry(value.keys, row)) : value;
  return Object.fromEntries(Object.entries(packed).map(([name, value]) => [name, unpacked(value)]));
}
