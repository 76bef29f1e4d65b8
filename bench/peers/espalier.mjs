/** Espalier as a contender: one sequence, stepped as `generate` steps it, but along given tokens. */
import { KvSequence } from '../../dist/runtime/kv-blocks.js';
import { Model } from '../../dist/runtime/model.js';
import { parseWeights } from '../../dist/runtime/weights.js';
import { timeEach } from './clock.mjs';

/** @type {import('./contender.mjs').Load} */
export async function load({ path, weights, activations = 'bf16', threads, context }) {
  const model = await Model.load(path, { activations, threads, weights: parseWeights(weights), kvTokens: context });

  const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0n };
  return {
    bytesPerToken: model.info.activeBytes,
    async generate(prompt, forced) {
      const sequence = new KvSequence(model.kv);
      let position = 0;
      const times = await timeEach([prompt, ...forced.map((token) => [token])], async (tokens) => {
        const end = position + tokens.length;
        const slices = [{ count: tokens.length, position, blocks: sequence.table(end) }];
        const samples = [{ ...greedy, row: tokens.length - 1, step: end }];
        await model.step({ tokens: Int32Array.from(tokens), slices, samples });
        position = end;
      });
      sequence.release();
      return times;
    },
    async logits(tokens) {
      const sequence = new KvSequence(model.kv);
      const slices = [{ count: tokens.length, position: 0, blocks: sequence.table(tokens.length) }];
      const rows = Int32Array.from(tokens.keys());
      const { logits } = await model.step({ tokens: Int32Array.from(tokens), slices, logits: rows });
      sequence.release();
      const width = model.spec.vocabularySize;
      return tokens.map((_, row) => Array.from(logits.subarray(row * width, (row + 1) * width)));
    },
  };
}
