"use strict";

// Names come from files that nobody vouches for. They go into the page as text nodes only.

const STAGES = ["forward", "loss", "backward", "update"];
const data = JSON.parse(document.getElementById("facts").textContent);

/** Tables were written with their keys once. */
function decoded(packed) {
  const entry = (keys, row) => Object.fromEntries(keys.map((key, at) => [key, row[at]]));
  const unpacked = (value) =>
    value && value.keys && value.rows ? value.rows.map((row) => entry(value.keys, row)) : value;
  return Object.fromEntries(Object.entries(packed).map(([name, value]) => [name, unpacked(value)]));
}
