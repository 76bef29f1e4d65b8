/** Experts that are stored as one tensor are pruned as separate ones are. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Model } from '../lib/index.ts';
import { editedCheckpoint, tensorsOf } from './support/checkpoints.ts';
import { familyFolder } from './support/models.ts';
import { pruned, randomIds } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { freshSeed, logitsOf } from './support/steps.ts';

describe('fused experts', () => {
  /** The same weights with one tensor for each expert's matrix, as checkpoints of transformers 4 have them. */
  const separate = (family: string, dir: string) =>
    editedCheckpoint(join(familyFolder, family), dir, (tensors) => {
      for (const [name, { dtype, shape, bytes }] of [...tensors]) {
        const match = /^(.*)\.mlp\.experts\.(gate_up_proj|down_proj)$/.exec(name);
        if (match === null) continue;
        tensors.delete(name);
        const [experts, rows, columns] = shape as [number, number, number];
        const names = match[2] === 'down_proj' ? ['down_proj'] : ['gate_proj', 'up_proj'];
        const part = bytes.byteLength / experts / names.length;
        for (let expert = 0; expert < experts; expert++) {
          for (const [i, own] of names.entries()) {
            const begin = (expert * names.length + i) * part;
            tensors.set(`${match[1]}.mlp.experts.${expert}.${own}.weight`, {
              dtype,
              shape: [rows / names.length, columns],
              bytes: bytes.slice(begin, begin + part),
            });
          }
        }
      }
      if (!family.startsWith('mixtral')) return;
      const old: Record<string, string> = { gate_proj: 'w1', down_proj: 'w2', up_proj: 'w3' };
      for (const [name, tensor] of [...tensors]) {
        if (!name.includes('.mlp.')) continue;
        tensors.delete(name);
        const renamed = name.replace('.mlp.', '.block_sparse_moe.');
        tensors.set(
          renamed.replace(/(gate|up|down)_proj/, (own) => old[own]!),
          tensor,
        );
      }
    });

  const families = readdirSync(familyFolder).filter((name) => name.endsWith('-fused'));
  test.each(families)('keep their names and shapes, and are pruned as separate ones are: %s', async (family) => {
    const fused = join(familyFolder, family);
    const apart = await separate(family, join(temporaryFolder(), 'separate'));
    const ids = [...randomIds(freshSeed(), 40, 128)];
    for (const recipe of [{ method: 'moe-pruner' }, { method: 'sparsegpt', pattern: '2:4', save: 'sparse' }] as const) {
      const options = { ...recipe, calibration: randomIds(3, 512, 128), samples: 16, sequenceLength: 32 };
      const a = await pruned({ ...options, model: fused });
      const b = await pruned({ ...options, model: apart });
      const [before, after] = [tensorsOf(fused), tensorsOf(a.output)];
      expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
      for (const [name, { dtype, shape }] of after) {
        expect([dtype, shape]).toEqual([before.get(name)!.dtype, before.get(name)!.shape]);
      }
      const logits = [];
      for (const { output } of [a, b]) {
        await using model = await Model.load(output);
        logits.push(await logitsOf(model, ids));
      }
      expect(logits[1]).toEqual(logits[0]);
      expect(a.layers).toEqual(b.layers);
      expect(a.sparsity).toBeGreaterThan(0.49);
    }
  });
});
