/** Models that cannot be pruned as asked: experts without tokens, weights that are not finite. */
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { prune } from '../lib/index.ts';
import { bitsOf, editedCheckpoint, tensorsOf } from './support/checkpoints.ts';
import { demoModel } from './support/models.ts';
import { isExpert, pruned, small, zerosOf } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

describe('what cannot be pruned as asked', () => {
  /** The demo whose experts 0, 1 and 3 of layer 1 have the same router row: ties go to the lower two. */
  const starved = (dir: string) =>
    editedCheckpoint(demoModel, dir, (tensors) => {
      const router = tensors.get('model.layers.1.block_sparse_moe.gate.weight')!;
      const row = router.bytes.byteLength / 8;
      for (const expert of [1, 3]) router.bytes.copyWithin(expert * row, 0, row);
    });

  test.each(['wanda', 'moe-pruner', 'sparsegpt'] as const)(
    'an expert that saw no tokens is pruned by magnitude, with a warning: %s',
    async (method) => {
      const model = await starved(join(temporaryFolder(), 'starved'));
      const heard: string[] = [];
      const result = await pruned({
        model,
        method,
        onProgress: (progress) => progress.type === 'warning' && heard.push(progress.message),
      });
      const fallback = result.layers.flatMap(({ layer, experts }) =>
        experts.filter((expert) => expert.fallback).map(({ expert, tokens }) => ({ layer, expert, tokens })),
      );
      expect(fallback).toContainEqual({ layer: 1, expert: 3, tokens: 0 });
      const said = result.warnings.filter((text) => text.includes('layer 1, expert 3'));
      expect(said).toEqual([expect.stringMatching(/no calibration tokens.*magnitude/)]);
      expect(heard).toEqual(result.warnings);
      for (const name of ['w1', 'w2', 'w3']) {
        const key = `model.layers.1.block_sparse_moe.experts.3.${name}.weight`;
        const [old, now] = [tensorsOf(model).get(key)!, tensorsOf(result.output).get(key)!];
        const [dense, bits] = [bitsOf(old), bitsOf(now)];
        const columns = now.shape[1]!;
        const region = method === 'sparsegpt' ? 128 : columns;
        // Kept weights are the dense ones, and in its row (or block) each is at least as large as any that went.
        const parts = new Map<string, { gone: number; kept: number; zeros: number }>();
        for (let i = 0; i < bits.length; i++) {
          if (bits[i] !== 0 && bits[i] !== dense[i]) throw new Error(`${key}: a kept weight changed`);
          const where = method === 'sparsegpt' ? `${Math.floor((i % columns) / region)}` : `${Math.floor(i / columns)}`;
          const part = parts.get(where) ?? { gone: 0, kept: Number.POSITIVE_INFINITY, zeros: 0 };
          const magnitude = dense[i]! & 0x7fff;
          if (bits[i] === 0) [part.gone, part.zeros] = [Math.max(part.gone, magnitude), part.zeros + 1];
          else part.kept = Math.min(part.kept, magnitude);
          parts.set(where, part);
        }
        for (const { gone, kept, zeros } of parts.values()) {
          expect(gone).toBeLessThanOrEqual(kept);
          expect(zeros).toBeGreaterThan(0);
        }
      }
    },
  );

  const poison: [string, string, number][] = [
    ['an expert', 'model.layers.2.block_sparse_moe.experts.5.w3.weight', 0x7fc0],
    ['attention', 'model.layers.1.self_attn.q_proj.weight', 0xff80],
    ['a router', 'model.layers.3.block_sparse_moe.gate.weight', 0x7f80],
    ['a norm', 'model.layers.0.input_layernorm.weight', 0x7fc1],
    ['the embedding', 'model.embed_tokens.weight', 0x7fc0],
    ['the head', 'lm_head.weight', 0x7f80],
    ['the last norm', 'model.norm.weight', 0xffc0],
  ];
  const poisoned = (dir: string, tensor: string, bits: number) =>
    editedCheckpoint(demoModel, dir, (tensors) => {
      const { bytes } = tensors.get(tensor)!;
      new DataView(bytes.buffer, bytes.byteOffset).setUint16(64, bits, true);
    });

  test.each(poison)('NaN or infinity in %s is refused by name', async (_what, tensor, bits) => {
    const folder = temporaryFolder();
    const model = await poisoned(join(folder, 'poisoned'), tensor, bits);
    for (const method of ['magnitude', 'wanda'] as const) {
      const run = prune({ ...small, model, method, output: join(folder, 'out') });
      await expect(run).rejects.toMatchObject({ code: 'NONFINITE', tensor, message: expect.stringContaining(tensor) });
      expect(existsSync(join(folder, 'out'))).toBe(false);
      // Layers that were finished before it was found are kept for a run that resumes.
      rmSync(join(folder, 'out.partial'), { recursive: true, force: true });
    }
  });

  test.each(['magnitude', 'wanda', 'sparsegpt'] as const)(
    '--allow-nonfinite leaves such a matrix as it is: %s',
    async (method) => {
      const [, tensor, bits] = poison[0]!;
      const model = await poisoned(join(temporaryFolder(), 'poisoned'), tensor, bits);
      const result = await pruned({ model, method, allowNonfinite: true });
      const [before, after] = [tensorsOf(model), tensorsOf(result.output)];
      expect(Buffer.compare(after.get(tensor)!.bytes, before.get(tensor)!.bytes)).toBe(0);
      expect(result.layers[2]!.experts[5]!.skipped).toEqual(['up']);
      expect(result.warnings.join('\n')).toMatch(/layer 2, expert 5, up holds NaN or infinity/);
      let finite = true;
      for (const [name, held] of after) {
        if (!isExpert(name) || name === tensor) continue;
        const values = bitsOf(held);
        finite &&= values.every((value) => (value & 0x7f80) !== 0x7f80);
        expect(zerosOf(values, values.length)[0]! / values.length, name).toBeGreaterThan(0.49);
      }
      expect(finite).toBe(true);
      expect(result.size).toBe(4 * 8 * 3 * 192 * 384);
    },
  );
});
