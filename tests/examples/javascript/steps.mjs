// Trains a graph from files: node steps.mjs PACKAGE FOLDER
//
// FOLDER holds train.onnx, feeds/*.safetensors, and start.safetensors if it goes on from there. It
// prints the losses, and writes the state into end.safetensors.

import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { decode, encode } from "./checkpoint.mjs";
import { Trainer } from "./train.mjs";

const [name, folder] = process.argv.slice(2);
const read = async (...path) => new Uint8Array(await readFile(join(folder, ...path)));
const ort = await import(name);
const names = await readdir(folder);

const trainer = await Trainer.load(ort, await read("train.onnx"), { intraOpNumThreads: 1 });
if (names.includes("start.safetensors")) {
  await trainer.restore(decode(ort, await read("start.safetensors")));
}
const losses = [];
for (const file of (await readdir(join(folder, "feeds"))).sort()) {
  const { loss } = await trainer.step(decode(ort, await read("feeds", file)));
  losses.push(Number(loss.data[0]));
}
await writeFile(join(folder, "end.safetensors"), encode(await trainer.state()));
await trainer.release();
console.log(JSON.stringify(losses));
