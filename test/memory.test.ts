import { execFileSync } from 'node:child_process';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { compiledLibrary } from './support/dist.ts';
import { demoModel } from './support/models.ts';

const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

test('loading a model fifty times, disposed or left to the collector, does not add to memory', () => {
  const script = fileURLToPath(new URL('support/memory-child.mjs', import.meta.url));
  const stdout = execFileSync(process.execPath, ['--expose-gc', script, compiledLibrary(), demoModel], {
    encoding: 'utf8',
  });
  const rounds = JSON.parse(stdout) as number[];
  expect(rounds).toHaveLength(50);
  const [early, late] = [median(rounds.slice(10, 20)), median(rounds.slice(40))];
  const size = readdirSync(demoModel)
    .map((name) => statSync(join(demoModel, name)).size)
    .reduce((sum, bytes) => sum + bytes);
  console.log(
    `resident: ${(early / 2 ** 20).toFixed(0)} MiB after 15 models, ${(late / 2 ** 20).toFixed(0)} MiB after 45`,
  );
  // Thirty models lie between the two; what is resident goes up and down by half of one, over 200 rounds too.
  expect(late - early).toBeLessThan(size);
});
