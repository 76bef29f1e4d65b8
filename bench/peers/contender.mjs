/**
 * A contender in a process of its own, so that neither engine has the other's threads, allocator or heap beside it.
 * Run as a child process it serves one engine: each message names one of its functions, the answer is what that returned.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/**
 * What both engines can do. Times are in milliseconds: first the prompt's, then one for each token of `forced`, which
 * replaces what the model drew, so that all contenders run the same tokens through (nearly) the same experts.
 * @typedef {object} Engine
 * @property {number} bytesPerToken of weights that one token reads
 * @property {(prompt: number[], forced: number[]) => Promise<number[]>} generate with the greedy choice after each step
 * @property {(tokens: number[]) => Promise<number[][]>} logits `[tokens, vocabulary]`
 *
 * @typedef {object} Options
 * @property {'llama' | 'espalier'} engine
 * @property {string} path GGUF file, or folder of a checkpoint
 * @property {string} [weights] as `--weights` of the command line
 * @property {'float32' | 'bf16'} [activations] of espalier; bf16 where not given, as llama.cpp's BF16 products have them
 * @property {number} threads
 * @property {number} context tokens that the cache has room for
 *
 * @typedef {(options: Options) => Promise<Engine>} Load
 */

export class Contender {
  /** @type {number} */
  loadSeconds = 0;
  /** @type {number} */
  bytesPerToken = 0;
  #child;

  /** @param {Options} options */
  static async start(options) {
    const contender = new Contender();
    contender.#child = fork(fileURLToPath(import.meta.url), [JSON.stringify(options)]);
    Object.assign(contender, await contender.#answer());
    return contender;
  }

  /** Calls a function of the engine; one call at a time. */
  async call(name, ...values) {
    this.#child.send({ name, values });
    return await this.#answer();
  }

  /** Milliseconds of processor time that it has used. */
  get cpuMilliseconds() {
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it, in 1/100 s.
    const fields = readFileSync(`/proc/${this.#child.pid}/stat`, 'utf8').split(') ').at(-1).split(' ');
    return (Number(fields[11]) + Number(fields[12])) * 10;
  }

  async stop() {
    const exit = once(this.#child, 'exit');
    this.#child.disconnect();
    await exit;
  }

  async #answer() {
    const stopped = new AbortController();
    const exit = once(this.#child, 'exit', { signal: stopped.signal }).then(([code, signal]) => {
      throw new Error(`the contender ended with ${signal ?? `exit status ${code}`}`);
    });
    const answer = once(this.#child, 'message', { signal: stopped.signal });
    exit.catch(() => {});
    answer.catch(() => {});
    try {
      const [{ error, result }] = await Promise.race([answer, exit]);
      if (error !== undefined) throw new Error(error);
      return result;
    } finally {
      stopped.abort();
    }
  }
}

async function serve(options) {
  const reply = async (work) => {
    try {
      process.send({ result: await work() });
    } catch (error) {
      process.send({ error: `${options.engine}, ${options.path}: ${error.stack}` });
    }
  };
  process.on('disconnect', () => process.exit());
  /** @type {Engine} */
  let engine;
  await reply(async () => {
    // What loading the library's own code costs is no part of loading the model.
    const { load } = await import(`./${options.engine}.mjs`);
    const start = performance.now();
    engine = await load(options);
    return { loadSeconds: (performance.now() - start) / 1000, bytesPerToken: engine.bytesPerToken };
  });
  process.on('message', ({ name, values }) => reply(() => engine[name](...values)));
}

if (process.send !== undefined && process.argv[1] === fileURLToPath(import.meta.url)) {
  await serve(JSON.parse(process.argv[2]));
}
