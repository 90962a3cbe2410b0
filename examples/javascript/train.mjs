import { declared } from "./model.mjs";

/**
 * Trains a graph made by graphopt.training_graph, with onnxruntime-node or onnxruntime-web:
 *
 *     const trainer = await Trainer.load(ort, bytes);
 *     const { loss } = await trainer.step({ x, labels });
 *     const parameters = trainer.state();
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
    const start = await ort.InferenceSession.create(initialization, options);
    const values = await start.run({});
    await start.release();
    const trainer = new Trainer();
    trainer.#ort = ort;
    trainer.#session = await ort.InferenceSession.create(bytes, options);
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
      this.#carried = Object.fromEntries(carried);
      return outputs;
    } finally {
      this.#busy = false;
    }
  }

  /** Parameters and states by name, as tensors of their own: they stay as they are. */
  state() {
    const named = {};
    for (const [input, { type, data }] of Object.entries(this.#carried)) {
      for (const [name, shape, offset] of this.#views[input]) {
        const size = shape.reduce((product, extent) => product * extent, 1);
        named[name] = new this.#ort.Tensor(type, data.slice(offset, offset + size), shape);
      }
    }
    return named;
  }

  /** Goes on from what `state()` gave; names that are left out keep their values. */
  restore(named) {
    for (const [input, { type, data, dims }] of Object.entries(this.#carried)) {
      const whole = data.slice();
      for (const [name, , offset] of this.#views[input]) {
        if (name in named) whole.set(named[name].data, offset);
      }
      this.#carried[input] = new this.#ort.Tensor(type, whole, dims);
    }
  }

  /** Frees the session's memory. */
  release() {
    return this.#session.release();
  }
}
