// Trains on device, stops halfway, and goes on in another session: node on_device_steps.mjs FOLDER
//
// Prints the losses, and writes the state into FOLDER/end.safetensors.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { decode, encode } from "./checkpoint.mjs";
import { batches } from "./digits.mjs";
import * as ort from "./node_modules/onnxruntime-web-training/dist/ort.training.wasm.min.mjs";
import { OnDeviceTrainer } from "./on_device.mjs";

ort.env.wasm.numThreads = 1;

const read = async (name) => new Uint8Array(await readFile(join("build", name)));
const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
const load = async () =>
  OnDeviceTrainer.load(ort, {
    checkpoint: await read("on_device/checkpoint"),
    trainingModel: await read("on_device/training_model.onnx"),
    evalModel: await read("on_device/eval_model.onnx"),
    description: await json("on_device/graphopt.json"),
  });

const [folder, steps] = process.argv.slice(2);
const fed = batches(ort, (await json("digits.json")).train);
const losses = [];
let trainer = await load();
for (let step = 0; step < Number(steps); step++) {
  if (step === Math.floor(Number(steps) / 2)) {
    const kept = encode(await trainer.state());
    await trainer.release();
    trainer = await load();
    await trainer.restore(decode(ort, kept));
  }
  losses.push((await trainer.step(fed[step % fed.length])).loss.data[0]);
}
await writeFile(join(folder, "end.safetensors"), encode(await trainer.state()));
console.log(JSON.stringify(losses));
