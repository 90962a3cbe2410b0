import { declared } from "./model.mjs";

/**
 * Trains a graph made by graphopt.training_graph, with onnxruntime-node or onnxruntime-web:
 *
 *     const trainer = await Trainer.load(ort, bytes);
 *     const { loss } = await trainer.step({ x, labels });
 *     const parameters = await trainer.state();
 *
 * With `{ executionProviders: ["webgpu"] }` and onnxruntime-web/webgpu, what is carried from step to
 * step stays on the GPU.
 */
export class Trainer {
  #ort;
  #session;
  #binding; // the output that feeds each carried input at the next step
  #views; // the parts of each carried tensor: name, shape, offset
  #carried; // the tensors of the next step, by input
  #busy = false;

  /**
   * @param ort The module onnxruntime-node or onnxruntime-web.
   * @param {Uint8Array} bytes The training graph's file.
   * @param options Options of both sessions, for example `{ intraOpNumThreads: 1 }`.
   */
  static async load(ort, bytes, options = {}) {
    const { binding, initialization, initializationBinding, views } = declared(bytes);
    const start = await ort.InferenceSession.create(initialization); // on the CPU
    const values = await start.run({});
    await start.release();
    const trainer = new Trainer();
    trainer.#ort = ort;
    trainer.#session = await ort.InferenceSession.create(bytes, {
      ...options,
      preferredOutputLocation: locations(options, binding, initializationBinding, values),
    });
    trainer.#binding = Object.entries(binding);
    trainer.#views = views;
    trainer.#carried = Object.fromEntries(
      Object.entries(initializationBinding).map(([input, output]) => [input, values[output]]),
    );
    return trainer;
  }

  /**
   * Runs one step.
   *
   * @param {Object<string, Tensor>} feeds The batch.
   * @returns The outputs that are not carried: the loss, and what the model computes. A step that
   *   fails leaves the state as it was.
   */
  async step(feeds) {
    if (this.#busy) throw new Error("a step is running already: await it before the next");
    this.#busy = true;
    try {
      const outputs = { ...(await this.#session.run({ ...feeds, ...this.#carried })) };
      const carried = this.#binding.map(([input, output]) => [input, outputs[output]]);
      for (const [, output] of this.#binding) delete outputs[output];
      const before = this.#carried;
      this.#carried = Object.fromEntries(carried);
      free(before);
      return outputs;
    } finally {
      this.#busy = false;
    }
  }

  /** Parameters and states by name, as tensors of their own: they stay as they are. */
  async state() {
    const named = {};
    for (const [input, tensor] of Object.entries(this.#carried)) {
      const { type } = tensor;
      const data = await tensor.getData();
      for (const [name, shape, offset] of this.#views[input]) {
        const size = shape.reduce((product, extent) => product * extent, 1);
        named[name] = new this.#ort.Tensor(type, data.slice(offset, offset + size), shape);
      }
    }
    return named;
  }

  /** Goes on from what `state()` gave; names that are left out keep their values. */
  async restore(named) {
    const before = this.#carried;
    const carried = {};
    for (const [input, tensor] of Object.entries(before)) {
      const { type, dims } = tensor;
      const whole = (await tensor.getData()).slice();
      for (const [name, , offset] of this.#views[input]) {
        if (name in named) whole.set(named[name].data, offset);
      }
      carried[input] = new this.#ort.Tensor(type, whole, dims);
    }
    this.#carried = carried;
    free(before);
  }

  /** Frees the session's memory. */
  release() {
    free(this.#carried);
    return this.#session.release();
  }
}

/** Where the outputs go: floats that are carried stay on the GPU, counters are read on the CPU. */
function locations({ executionProviders = [] }, binding, initializationBinding, values) {
  if (!executionProviders.some((provider) => (provider.name ?? provider) === "webgpu")) return "cpu";
  const carried = Object.entries(binding).filter(([input]) =>
    values[initializationBinding[input]].type.startsWith("float"),
  );
  return Object.fromEntries(carried.map(([, output]) => [output, "gpu-buffer"]));
}

/** Gives back the memory that tensors have on a GPU. */
function free(tensors) {
  for (const tensor of Object.values(tensors)) {
    if (tensor.location === "gpu-buffer") tensor.dispose();
  }
}
