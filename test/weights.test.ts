import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { perplexity } from '../lib/eval/perplexity.ts';
import { prune } from '../lib/prune/prune.ts';
import { Model } from '../lib/runtime/model.ts';
import { parseWeights, resolveWeights, type Weights } from '../lib/runtime/weights.ts';

const demo = 'models/demo';
const data = 'test/golden/demo/golden-eval.u16';
const windows = { sequenceLength: 512, maxWindows: 40 };
const scratch = mkdtempSync(join(tmpdir(), 'espalier-weights-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const measure = async (weights: Weights, model = demo) =>
  (await perplexity({ model, data, weights, ...windows })).perplexity;

describe('weights held in fewer bits', () => {
  it('cost no more perplexity than rounding to nearest should', async () => {
    const source = await measure('source');
    expect(await measure('int8')).toBeLessThan(source * 1.003);
    expect(await measure({ experts: 'int4', rest: 'int8' })).toBeLessThan(source * 1.035);
    expect(await measure('int4')).toBeLessThan(source * 1.08);
    // Rounding is no improvement either: a bug that left weights as they are would show.
    expect(await measure('int4')).toBeGreaterThan(source * 1.005);
  });

  it('keep the next token almost everywhere that the two likeliest logits are clearly apart', async () => {
    const bytes = readFileSync(data);
    const tokens = Int32Array.from(new Uint16Array(bytes.buffer, bytes.byteOffset, 512));
    const logitsOf = async (weights: Weights) => {
      await using model = await Model.load(demo, { weights });
      const slices = [{ count: 512, position: 0, blocks: Int32Array.from({ length: 32 }, (_, i) => i) }];
      return (await model.step({ tokens, slices, logits: Int32Array.from({ length: 512 }, (_, i) => i) })).logits;
    };
    const [exact, rounded] = [await logitsOf('source'), await logitsOf('int8')];
    const size = exact.length / 512;
    let compared = 0;
    let kept = 0;
    for (let row = 0; row < 512; row++) {
      const logits = exact.subarray(row * size, (row + 1) * size);
      const [first, second] = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!);
      if (logits[first!]! - logits[second!]! <= 0.2) continue;
      compared++;
      const other = rounded.subarray(row * size, (row + 1) * size);
      kept += Number(other[first!] === Math.max(...other));
    }
    expect(compared).toBeGreaterThan(256);
    expect(kept / compared).toBeGreaterThan(0.98);
  });

  it('run a pruned model sparse, with the bits of the dense format', async () => {
    const output = join(scratch, 'two-of-four');
    await prune({ model: demo, output, method: 'magnitude', pattern: '2:4' });
    for (const weights of ['int8', 'int4'] as const) {
      await using sparse = await Model.load(output, { weights });
      await using dense = await Model.load(output, { weights, format: 'dense' });
      expect(dense.info.formats).toEqual([`dense ${weights}`]);
      const answer = async (model: Model) => {
        const ids: number[] = [];
        for await (const piece of model.generate([1, 2, 3], { maxTokens: 24, ignoreEos: true })) ids.push(...piece.ids);
        return ids;
      };
      expect(await answer(sparse)).toEqual(await answer(dense));
      expect(sparse.info.expertBytes).toBeLessThanOrEqual(dense.info.expertBytes);
    }
  });

  it('are named for all, or for the experts and the rest', () => {
    expect(parseWeights('int8')).toBe('int8');
    expect(resolveWeights(parseWeights('int8'))).toEqual({ experts: 'int8', rest: 'int8' });
    expect(parseWeights('experts=int4,rest=int8')).toEqual({ experts: 'int4', rest: 'int8' });
    expect(parseWeights('rest=int8')).toEqual({ rest: 'int8' });
    expect(resolveWeights(parseWeights('experts=int4'))).toEqual({ experts: 'int4', rest: 'source' });
    for (const bad of ['int2', 'experts=int2', 'router=int8', '', 'experts=int4;rest=int8']) {
      expect(() => parseWeights(bad)).toThrow(expect.objectContaining({ code: 'USAGE', field: 'weights' }));
    }
  });
});
