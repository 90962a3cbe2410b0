// Trains the digits network in Node, and writes a checkpoint: node node.mjs [EPOCHS [PACKAGE]]
//
// PACKAGE is onnxruntime-node, onnxruntime-web, or on-device, which is onnxruntime-web's last
// release with the on-device training API.

import { readFile, writeFile } from "node:fs/promises";
import { encode } from "./checkpoint.mjs";
import { line } from "./digits.mjs";
import { trainDigits, trainDigitsOnDevice } from "./network.mjs";

// Its package offers the training build to browsers only, under a name that Node refuses.
const ON_DEVICE = "./node_modules/onnxruntime-web-training/dist/ort.training.wasm.min.mjs";

const [epochs = 10, name = "onnxruntime-node"] = process.argv.slice(2);
const folder = new URL("build/", import.meta.url);

const onDevice = name === "on-device";
const ort = await import(onDevice ? ON_DEVICE : name);
if (onDevice) ort.env.wasm.numThreads = 1; // its threads start in browsers only

const state = await (onDevice ? trainDigitsOnDevice : trainDigits)(
  ort,
  async (file) => new Uint8Array(await readFile(new URL(file, folder))),
  Number(epochs),
  (result) => console.log(line(result)),
);
await writeFile(new URL("checkpoint.safetensors", folder), encode(state));
