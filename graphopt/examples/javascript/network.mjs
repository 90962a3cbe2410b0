/** The training of the digits network, with each of the two ways. */

import { accuracy, batches, feeds, train } from "./digits.mjs";
import { OnDeviceTrainer } from "./on_device.mjs";
import { Trainer } from "./train.mjs";

/**
 * Trains the network through its training graph.
 *
 * @param ort The module onnxruntime-node or onnxruntime-web.
 * @param read Gives the bytes of a file that prepare.py wrote, by name.
 * @param report See `train` in digits.mjs.
 * @param more `graph`, the name of the graph's file; `options` of its session; and `recognize`,
 *   which is given a function after each epoch: of the pixels of a digit, 64 from 0 to 16, it gives
 *   how likely each of the ten is.
 * @returns The state after the last step, by name.
 */
export async function trainDigits(ort, read, epochs, report, more = {}) {
  const { graph = "train.onnx", options, recognize } = more;
  const data = await json(read, "digits.json");
  const trainer = await Trainer.load(ort, await read(graph), options);
  const forward = await ort.InferenceSession.create(await read("forward.onnx"));
  const parameters = forward.inputNames.filter((name) => name !== "x");
  const { x } = feeds(ort, data.test);

  const step = async (batch) => (await trainer.step(batch)).loss.data[0];
  const evaluate = async () => {
    const state = await trainer.state();
    const fed = Object.fromEntries(parameters.map((name) => [name, state[name]]));
    recognize?.(async (pixels) => {
      const { x } = feeds(ort, { pixels, labels: [0] });
      return softmax((await forward.run({ x, ...fed })).logits.data);
    });
    return accuracy((await forward.run({ x, ...fed })).logits, data.test.labels);
  };
  await train(batches(ort, data.train), epochs, { step, evaluate, report });
  return trainer.state();
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** The same with the files of on-device training; `ort` is the module onnxruntime-web/training. */
export async function trainDigitsOnDevice(ort, read, epochs, report) {
  const data = await json(read, "digits.json");
  const trainer = await OnDeviceTrainer.load(ort, {
    checkpoint: await read("on_device/checkpoint"),
    trainingModel: await read("on_device/training_model.onnx"),
    evalModel: await read("on_device/eval_model.onnx"),
    description: await json(read, "on_device/graphopt.json"),
  });
  const test = feeds(ort, data.test);

  const step = async (batch) => (await trainer.step(batch)).loss.data[0];
  const evaluate = async () => accuracy((await trainer.evaluate(test)).logits, data.test.labels);
  await train(batches(ort, data.train), epochs, { step, evaluate, report });
  return trainer.state();
}

async function json(read, name) {
  return JSON.parse(new TextDecoder().decode(await read(name)));
}
