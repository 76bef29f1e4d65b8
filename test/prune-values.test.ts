/** Recipes that round weights to int8 and int4: what other runtimes read is on the grid that packing stores. */
import { expect, test } from 'vitest';
import { bitsOf, tensorsOf } from './support/checkpoints.ts';
import { pruned, randomIds } from './support/prune.ts';

const group = 64;

/** A bf16 number of the given bits. */
function bf16(bits: number): number {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!;
}

/** Of the last of so many significant bits. */
function unit(value: number, bits: number): number {
  return 2 ** (Math.floor(Math.log2(Math.abs(value))) - bits + 1);
}

/** Whether int4 codes and one scale give the weights exactly; or int8 codes and the f16 scale that packing finds, in bf16. */
function isOnGrid(weights: readonly number[], values: 'int4' | 'int8'): boolean {
  const largest = Math.max(...weights.map(Math.abs));
  if (largest === 0) return true;
  if (values === 'int4') return [7, 8].some((end) => weights.every((w) => Number.isInteger((w * end) / largest)));
  const ofScale = unit(largest / 127, 11);
  const scale = Math.round(largest / 127 / ofScale) * ofScale;
  return weights.every((w) => w === 0 || Math.abs(w - Math.round(w / scale) * scale) <= unit(w, 8) / 2);
}

test.each([
  ['weights in one pass', 'int4', [{ weights: { method: 'sparsegpt', pattern: '2:4', values: 'int4' } }]],
  ['weights without update', 'int4', [{ weights: { method: 'wanda', pattern: '2:4', values: 'int4' } }]],
  ['a stage of its own', 'int8', [{ weights: { method: 'ria', pattern: '2:4' } }, { quantize: { values: 'int8' } }]],
] as const)('%s: %s', async (_, values, stages) => {
  const { output } = await pruned({ stages });
  let groups = 0;
  for (const [name, tensor] of tensorsOf(output)) {
    if (!name.includes('.experts.3.')) continue;
    const weights = [...bitsOf(tensor)].map(bf16);
    const cols = tensor.shape.at(-1)!;
    for (let row = 0; row < weights.length; row += cols) {
      for (let col = 0; col < cols; col += group) {
        const own = weights.slice(row + col, row + Math.min(cols, col + group));
        if (!isOnGrid(own, values)) {
          expect.fail(`${name}, row ${row / cols}, column ${col}: ${own}`);
        }
        for (let i = 0; i < own.length; i += 4) {
          if (own.slice(i, i + 4).filter((weight) => weight !== 0).length > 2) expect.fail(`${name} is not 2:4`);
        }
        groups++;
      }
    }
  }
  expect(groups).toBeGreaterThan(100);
});

test('experts that saw fewer tokens than they have inputs are counted in one warning', async () => {
  const starving = { samples: 2, sequenceLength: 64, calibration: randomIds(5, 128) };
  const counted = /^\d+ of 32 experts saw fewer calibration tokens than their matrices have inputs \(the least \d+\)/;
  const { warnings } = await pruned({ ...starving, method: 'sparsegpt' });
  expect(warnings.filter((warning) => counted.test(warning))).toHaveLength(1);
  const unmoved = await pruned({ ...starving, method: 'wanda' });
  expect(unmoved.warnings.filter((warning) => counted.test(warning))).toHaveLength(0);
});
