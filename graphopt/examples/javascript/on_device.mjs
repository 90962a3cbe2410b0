const STATE = /^(mean_square|mean_grad|moment)\./; // of the parameter whose name follows
const STEP = "global_step";
const BASE = 2 ** 24; // the step is kept as two float32 numbers: its remainder by BASE, its quotient

/**
 * Trains what graphopt.export_on_device wrote, with onnxruntime-web 1.19.2's training build:
 *
 *     const trainer = await OnDeviceTrainer.load(ort, files);
 *     const { loss } = await trainer.step({ x, labels });
 *     const parameters = await trainer.state();
 */
export class OnDeviceTrainer {
  #ort;
  #session;
  #parameters; // the shapes of the parameters
  #shapes; // those of everything in the checkpoint, in its order; states are flat there

  /**
   * @param ort The module onnxruntime-web/training.
   * @param {{
   *   checkpoint: Uint8Array, trainingModel: Uint8Array, evalModel: Uint8Array, description: Object
   * }} files The contents of the files; `description` is what graphopt.json says.
   */
  static async load(ort, { checkpoint, trainingModel, evalModel, description }) {
    const trainer = new OnDeviceTrainer();
    trainer.#ort = ort;
    trainer.#session = await ort.TrainingSession.create({
      checkpointState: checkpoint,
      trainModel: trainingModel,
      evalModel,
    });
    trainer.#parameters = description.parameters;
    trainer.#shapes = Object.entries({ ...description.parameters, ...description.state });
    return trainer;
  }

  /** Runs one step, which updates the parameters; gives the outputs of the training model. */
  step(feeds) {
    return this.#session.runTrainStep(feeds);
  }

  /** Gives the outputs of the eval model. */
  async evaluate(feeds) {
    const outputs = await this.#session.runEvalStep(feeds);
    // onnxruntime-web calls them by the names of the training model; their order is right.
    const names = this.#session.evalOutputNames;
    return Object.fromEntries(Object.values(outputs).map((tensor, at) => [names[at], tensor]));
  }

  /** Parameters and states by name, as `Trainer.state()` gives them. */
  async state() {
    const { data } = await this.#session.getContiguousParameters(false);
    const named = {};
    let at = 0;
    for (const [name, shape] of this.#shapes) {
      const part = data.slice(at, (at += size(shape)));
      const shown = STATE.test(name) ? this.#parameters[name.replace(STATE, "")] : shape;
      named[name] = new this.#ort.Tensor("float32", part, shown);
    }
    const [remainder, quotient] = named[STEP].data;
    const step = BigInt64Array.of(BigInt(remainder + quotient * BASE));
    return { ...named, [STEP]: new this.#ort.Tensor("int64", step, []) };
  }

  /** Goes on from what `state()` gave. */
  async restore(named) {
    const step = Number(named[STEP].data[0]);
    const numbers = { ...named, [STEP]: { data: [step % BASE, Math.floor(step / BASE)] } };
    const flat = new Float32Array(this.#shapes.reduce((sum, [, shape]) => sum + size(shape), 0));
    let at = 0;
    for (const [name, shape] of this.#shapes) {
      flat.set(numbers[name].data, at);
      at += size(shape);
    }
    await this.#session.loadParametersBuffer(new Uint8Array(flat.buffer), false);
  }

  /** Frees the session's memory. */
  release() {
    return this.#session.release();
  }
}

function size(shape) {
  return shape.reduce((product, extent) => product * extent, 1);
}
