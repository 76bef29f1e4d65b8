/** `npm run demo`: its numbers fit together. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { DemoReport } from '../lib/report/demo.ts';
import { espalier } from './support/cli.ts';

test('the demonstration measures, prunes, saves, reloads and generates, and leaves nothing behind', async () => {
  const temporary = mkdtempSync(join(tmpdir(), 'espalier-demo-test-'));
  try {
    const { code, stdout, stderr } = await espalier(['demo', '--json'], { env: { TMPDIR: temporary } });
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.not.stringContaining('warning') });
    const report = JSON.parse(stdout) as DemoReport;
    const { corpus, rows } = report;
    expect(corpus).toMatchObject({ kind: 'speeches', calibrationTokens: 64 * 512, evaluationTokens: 48 * 512 });
    expect(rows).toHaveLength(5);
    const [dense, pruner50, gpt50, pruner24, gpt24] = rows.map(({ perplexity }) => perplexity) as [
      number,
      number,
      number,
      number,
      number,
    ];
    // Error compensation beats choosing alone, and 2:4 costs more than 50 % anywhere.
    expect(dense).toBeLessThan(gpt50);
    expect(gpt50).toBeLessThan(pruner50);
    expect(gpt24).toBeLessThan(pruner24);
    expect(gpt50).toBeLessThan(gpt24);
    expect(pruner50).toBeLessThan(pruner24);
    expect(pruner24).toBeLessThan(2 * dense);
    for (const row of rows) {
      const isDense = row.name === 'dense';
      expect(row.sparsity).toBeCloseTo(isDense ? 0 : 0.5, 3);
      expect(row.tokensPerSecond).toBeGreaterThan(1);
      expect(row.continuation.length).toBeGreaterThan(20);
      if (isDense) continue;
      // Half of the weights of the experts (78 % of all) go, and a mask of one bit each comes.
      expect(row.sparseBytes! / row.denseBytes).toBeGreaterThan(0.6);
      expect(row.sparseBytes! / row.denseBytes).toBeLessThan(0.7);
      expect(row.runBytes).toBeLessThan(0.7 * rows[0]!.runBytes);
      expect(row.formats).not.toEqual(rows[0]!.formats);
    }
    expect(readdirSync(temporary)).toEqual([]);
    expect(existsSync(report.model)).toBe(true);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}, 300_000);
