// Prints what Trainer refuses, as JSON, and whether the state survived: node refusals.mjs PACKAGE

import { readFile } from "node:fs/promises";
import { encode } from "./checkpoint.mjs";
import { batches } from "./digits.mjs";
import { declared } from "./model.mjs";
import { Trainer } from "./train.mjs";

const read = async (name) => new Uint8Array(await readFile(new URL(name, import.meta.url)));
const message = async (run) => {
  try {
    await run();
    return "accepted";
  } catch (error) {
    return error.message;
  }
};

const ort = await import(process.argv[2]);
const graph = await read("build/train.onnx");
const data = JSON.parse(new TextDecoder().decode(await read("build/digits.json")));
const [batch] = batches(ort, data.train);
const trainer = await Trainer.load(ort, graph);
await trainer.step(batch);
const before = encode(await trainer.state());

const labels = new ort.Tensor("int64", new BigInt64Array(3), [3]);
const seen = {
  forward: await message(async () => declared(await read("build/forward.onnx"))),
  empty: await message(() => declared(graph.subarray(0, 0))),
  truncated: await message(() => declared(graph.subarray(0, graph.length / 2))),
  missing: await message(() => trainer.step({ x: batch.x })),
  unequal: await message(() => trainer.step({ x: batch.x, labels })),
};
const first = trainer.step(batch);
seen.overlapping = await message(() => trainer.step(batch));
await first;
seen.steps = Number((await trainer.state()).global_step.data[0]);

// Only the steps that were accepted may have moved the state.
const again = await Trainer.load(ort, graph);
await again.step(batch);
seen.repeatable = Buffer.compare(before, encode(await again.state())) === 0;
await again.step(batch);
seen.undisturbed = Buffer.compare(encode(await trainer.state()), encode(await again.state())) === 0;
console.log(JSON.stringify(seen));
